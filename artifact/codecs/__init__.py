"""Codecs: between an array of symbols and the bytes of one part of a stream."""

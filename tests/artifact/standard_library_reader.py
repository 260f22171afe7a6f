"""A reader of the Albatross artifact in the Python standard library alone, written from proto/FORMAT.md.

It decodes every codec but ZSTD, names what it skips, and makes only the checks that a friendly file needs.
"""

import hashlib
import struct
import sys
import zlib

LOG8 = """3f800000 3f85aac3 3f8b95c2 3f91c3d3 3f9837f0 3f9ef532 3fa5fed7 3fad583f
          3fb504f3 3fbd08a4 3fc5672a 3fce248c 3fd744fd 3fe0ccdf 3feac0c7 3ff5257d"""
LOG8_MANTISSAS = [struct.unpack(">f", bytes.fromhex(bits))[0] for bits in LOG8.split()]
FLOAT, SYMMETRIC, ASYMMETRIC, TERNARY, BINARY = 1, 2, 3, 4, 5
FLOAT_BYTES = {1: 4, 2: 2, 3: 2, 4: 1, 5: 1}
CODECS = ["raw", "bitpack", "zstd", "rans", "zpaq"]


class CannotDecode(Exception):
    """A codec that the standard library has no decoder for."""


def varint(data, position):
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        shift, position = shift + 7, position + 1
        if byte < 0x80:
            return value, position


def fields(data):
    """Field number -> list of values (integers or bytes) of one protobuf message."""
    found, position = {}, 0
    while position < len(data):
        tag, position = varint(data, position)
        if tag & 7 == 0:
            value, position = varint(data, position)
        elif tag & 7 == 2:
            length, position = varint(data, position)
            value, position = data[position : position + length], position + length
        else:
            length = 8 if tag & 7 == 1 else 4
            value, position = int.from_bytes(data[position : position + length], "little"), position + length
        found.setdefault(tag >> 3, []).append(value)
    return found


def packed(data):
    values, position = [], 0
    while position < len(data):
        value, position = varint(data, position)
        values.append(value)
    return values


def float32(value):
    """Nearest float32 (a sum or product of two float32 numbers may be rounded to binary64 first without harm)."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def read(data):
    """(name -> (shape, list of weights), name -> codec that could not be decoded)."""
    assert data[:9] == b"\x09ALBATRS\n", "not an artifact"
    assert hashlib.sha256(data[:-34]).digest() == data[-32:], "damaged"
    outer = fields(data)
    manifest = fields(outer[2][0])
    roles, skipped = ({}, {}, {}), {}
    for message, stream in zip(manifest.get(6, []), outer.get(3, []), strict=True):
        group = fields(message)
        assert zlib.crc32(stream) == group.get(5, [0])[0], "damaged stream"
        sets = [tensor_set(fields(entry)) for entry in group[1]]
        try:
            decoded = decode_group(sets, fields(group[3][0]), group[4], stream)
        except CannotDecode as error:
            skipped.update({name: str(error) for names, _ in sets for name in names})
            continue
        roles[group.get(2, [0])[0]].update(decoded)
    weights, left, right = roles
    for name in list(weights):
        if name in skipped:  # one of its factors
            del weights[name]
        elif name in left:
            correct(weights[name][1], left[name], right[name])
    for tie in map(fields, manifest.get(7, [])):
        name, target = tie[1][0].decode(), tie[2][0].decode()
        group_of = weights if target in weights else skipped
        group_of[name] = group_of[target]
    return weights, skipped


def tensor_set(message):
    pattern = message[1][0].decode()
    layers = packed(message[3][0]) if 3 in message else range(message.get(2, [0])[0])
    names = [pattern.replace("#", str(layer)) for layer in layers] if "#" in pattern else [pattern]
    return names, tuple(packed(message[4][0])) if 4 in message else ()


def matrix_shape(shape):
    rows = 1
    for dimension in shape[:-1]:
        rows *= dimension
    return rows, shape[-1] if shape else 1


def decode_group(sets, encoding, parts, stream):
    kind, float_type, bits, group_size, zigzag, order, permuted = (encoding.get(i, [0])[0] for i in range(1, 8))
    exponent = zigzag // 2 if zigzag % 2 == 0 else -(zigzag + 1) // 2
    alphabet = {FLOAT: 256, TERNARY: 3, BINARY: 2}.get(kind, 1 << bits)
    sizes = [(len(names), *matrix_shape(shape)) for names, shape in sets]
    values = sum(count * rows * columns for count, rows, columns in sizes)
    lattice = None
    if kind == FLOAT:
        shapes = [(values * FLOAT_BYTES[float_type], 256)]
    else:
        count, rows, columns = sizes[0]
        lattice = (columns, count * rows) if order else (rows, count * columns)
        scales = count * (-(-rows * columns // group_size) if group_size else rows)
        shapes = [(values, alphabet), (scales * FLOAT_BYTES[float_type], 256)]
        shapes += [(scales, alphabet)] if kind == ASYMMETRIC else []
        shapes += [(2 * count * rows, 256)] if permuted else []
    decoded = []
    for message, (num_symbols, size) in zip(parts, shapes, strict=True):
        codec, num_bytes, carried_bytes, lanes = (fields(message).get(i, [0])[0] for i in range(1, 5))
        coded, stream = stream[:num_bytes], stream[num_bytes:]
        symbols, carried = decode(CODECS[codec], coded, num_symbols, size, lattice, lanes)
        stream = carried[:carried_bytes] + stream
        decoded.append(symbols)
    if kind == FLOAT:
        return plain(sets, floats(decoded[0], float_type, 0))
    scales = floats(decoded[1], float_type, exponent)
    return quantized(sets[0], kind, bits, group_size, order, lattice, decoded, scales, permuted)


def decode(codec, data, num_symbols, alphabet, lattice, lanes):
    if codec == "raw":
        return list(data), b""
    if codec == "bitpack" and alphabet == 3:
        return [byte // 3**place % 3 for byte in data for place in range(5)][:num_symbols], b""
    if codec == "bitpack":
        width, packed_bits = alphabet.bit_length() - 1, int.from_bytes(data, "little")
        return [packed_bits >> index * width & alphabet - 1 for index in range(num_symbols)], b""
    if codec == "rans":
        return rans(data, alphabet, lattice, lanes)
    raise CannotDecode(codec)


def rans(data, alphabet, lattice, lanes):
    num_contexts, prior = data[0], int.from_bytes(data[1:3], "little")
    position = 3 + 2 * (num_contexts - 1)
    thresholds = struct.unpack(f"<{num_contexts - 1}H", data[3:position])
    tables = []
    for _ in range(num_contexts):
        first, last, position = data[position], data[position + 1], position + 2
        frequencies = {}
        for symbol in range(first, last):
            frequencies[symbol], position = varint(data, position)
        frequencies[last] = 16384 - sum(frequencies.values())
        slots = [symbol for symbol, frequency in frequencies.items() for _ in range(frequency)]
        tables.append((frequencies, slots, {symbol: slots.index(symbol) for symbol in set(slots)}))
    states = list(struct.unpack_from(f"<{lanes}I", data, position))
    words = iter(struct.unpack_from(f"<{(len(data) - position) // 2 - 2 * lanes}H", data, position + 4 * lanes))
    lines, positions = lattice
    sums, symbols = [4 * prior] * positions, []
    for line in range(lines):
        for place in range(positions):
            mean, lane = sums[place] // (line + 4), place % lanes
            frequencies, slots, starts = tables[sum(threshold <= mean for threshold in thresholds)]
            slot = states[lane] % 16384
            symbol = slots[slot]
            states[lane] = frequencies[symbol] * (states[lane] // 16384) + slot - starts[symbol]
            if states[lane] < 65536:
                states[lane] = states[lane] * 65536 + next(words)
            symbols.append(symbol)
            sums[place] += 256 * abs(symbol - alphabet // 2)
    assert next(words, None) is None, "words left over"
    return symbols, struct.pack(f"<{lanes}H", *(state - 65536 for state in states))


def floats(planes, float_type, exponent):
    size = FLOAT_BYTES[float_type]
    count = len(planes) // size
    data = [bytes(planes[plane * count + i] for plane in range(size)) for i in range(count)]
    if float_type in (1, 2):
        return [struct.unpack("<f" if float_type == 1 else "<e", value)[0] for value in data]
    if float_type == 3:
        return [struct.unpack("<f", b"\0\0" + value)[0] for value in data]
    if float_type == 4:
        return [float8(value[0]) for value in data]
    return [LOG8_MANTISSAS[value[0] & 15] * 2.0 ** (exponent + (value[0] >> 4)) for value in data]


def float8(code):
    sign, exponent, fraction = -1 if code & 128 else 1, code >> 3 & 15, code & 7
    return sign * ((1 + fraction / 8) * 2.0 ** (exponent - 7) if exponent else fraction / 8 * 2.0**-6)


def plain(sets, values):
    result, position = {}, 0
    for names, shape in sets:
        rows, columns = matrix_shape(shape)
        for name in names:
            result[name] = shape, values[position : position + rows * columns]
            position += rows * columns
    return result


def quantized(tensors, kind, bits, group_size, order, lattice, decoded, scales, permuted):
    names, shape = tensors
    rows, columns = matrix_shape(shape)
    scales_each, result = len(scales) // len(names), {}
    for index, name in enumerate(names):
        weights = [0.0] * (rows * columns)
        for stored in range(rows):
            row = stored
            if permuted:
                at = index * rows + stored
                row = decoded[-1][at] + 256 * decoded[-1][rows * len(names) + at]
            for column in range(columns):
                line, place = (column, index * rows + stored) if order else (stored, index * columns + column)
                symbol, flat = decoded[0][line * lattice[1] + place], row * columns + column
                at = index * scales_each + (flat // group_size if group_size else row)
                level = {
                    SYMMETRIC: lambda u, _: u - (1 << bits - 1),
                    ASYMMETRIC: lambda u, at: u - decoded[2][at],
                    TERNARY: lambda u, _: u - 1,
                    BINARY: lambda u, _: 2 * u - 1,
                }[kind](symbol, at)
                weights[flat] = float32(level * scales[at])
        result[name] = shape, weights
    return result


def correct(weights, left, right):
    (rows, rank), columns = left[0], right[0][1]
    for j in range(rank):
        for row in range(rows):
            for column in range(columns):
                product = float32(left[1][row * rank + j] * right[1][j * columns + column])
                weights[row * columns + column] = float32(weights[row * columns + column] + product)


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        tensors, skipped_tensors = read(file.read())
    for tensor_name, (tensor_shape, tensor_weights) in sorted(tensors.items()):
        print(tensor_name, tensor_shape, tensor_weights[:4])
    print("skipped:", skipped_tensors)

"""`albatross report`: what one or several runs did, as a page that a browser shows without a network."""

from hypothesis import given

from model.text.escape import escape, unescape
from tests.text.strategies import texts


def test_known_texts():
    assert escape("a▁b") == "a\ue0041b"
    assert escape("\ue0041") == "\ue00401"
    assert escape("plain \ue001") == "plain \ue001"
    assert unescape("\ue004x\ue004") == "\ue004x\ue004"


@given(text=texts)
def test_any_text_survives(text):
    escaped = escape(text)
    assert "▁" not in escaped
    assert unescape(escaped) == text

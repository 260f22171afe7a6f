import re

from launch.data import corpus
from launch.data.corpus import python_documentation, write_python_documentation

SOURCE = '''"""Module of the tern. It flies."""
# The first line of an explanation that is long enough to be
# taken for prose. It has sentences, and
# it has commas.
x = 0
# x = 1
# y = f(x)[2]
# z = {1: 2}
class A:
    """Class doc of A, which is repeated elsewhere in the same words, to the letter."""
    def f(self):
        "Function doc."
def g():
    """Class doc of A, which is repeated elsewhere in the same words, to the letter."""
'''


def library(folder, num_modules: int = 60):
    for number in range(num_modules):
        path = folder / f"m{number}" / "__init__.py"
        path.parent.mkdir(parents=True)
        path.write_text(SOURCE.replace("tern", f"tern {number} " * 30))
    (folder / "test").mkdir()
    (folder / "test" / "x.py").write_text(SOURCE)
    (folder / "broken.py").write_text("def f(:\n")
    (folder / "pydoc_data").mkdir()
    (folder / "pydoc_data" / "topics.py").write_text(f"topics = {{'in': {'A topic. ' * 40!r}, 3: 'x'}}\n")
    return folder


def test_documents_of_a_made_up_library(tmp_path):
    folder = library(tmp_path)
    train, val = python_documentation(folder)
    assert (train, val) == python_documentation(folder)
    assert len(train) + len(val) == 61
    assert 1 <= len(val) <= 10
    both = "".join(val + train)
    assert both.count("Class doc of A") == 1
    assert both.count("The first line of an explanation") == 1
    assert both.count("Function doc.") == 60  # too short to count as a repetition
    assert "f(x)" not in both
    assert any(text.startswith("A topic.") for text in train + val)
    first = next(text for text in val + train if "Class doc" in text)
    assert first.index("Module of") < first.index("The first line") < first.index("Class doc") < first.index("Function")


def test_this_pythons_corpus():
    train, val = python_documentation()
    assert sum(map(len, train)) > 1_000_000
    assert 50_000 < sum(map(len, val)) < 500_000
    assert len(val) >= 10
    paragraphs = [{" ".join(p.split()) for text in texts for p in re.split(r"\n\s*\n", text)} for texts in (train, val)]
    shared = {p for p in paragraphs[0] & paragraphs[1] if len(p) >= corpus._MIN_PARAGRAPH_CHARACTERS}
    assert shared == set()


def test_written_corpus_is_an_input_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "python_documentation", lambda: (["a\n"], ["é\n"]))
    write_python_documentation(tmp_path / "docs")
    assert (tmp_path / "docs" / "train.jsonl").read_text(encoding="utf-8") == '{"text": "a\\n"}\n'
    assert (tmp_path / "docs" / "val.jsonl").read_text(encoding="utf-8") == '{"text": "é\\n"}\n'

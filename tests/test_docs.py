"""The site: links are checked, nothing is fetched from elsewhere, formulas need no script."""

import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
docs = pytest.importorskip("docs", reason="tools/docs.py needs the extra dev")


def page(folder: Path, name: str, body: str) -> None:
    "A page of a site."
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"<html><body><h1 id='top'>x</h1>{body}</body></html>", encoding="utf-8")


def test_links_that_lead_nowhere_are_found(tmp_path):
    page(tmp_path, "index.html", '<a href="core/errors.html#top">a</a><a href="https://example.org/x">b</a><a href="#top">c</a>')
    page(tmp_path, "core/errors.html", '<a href="../index.html">home</a>')
    assert docs.problems(tmp_path) == []
    page(tmp_path, "core/errors.html", '<a href="none.html">a</a><a href="../index.html#none">b</a><a href="#none">c</a>')
    assert len(docs.problems(tmp_path)) == 3


@pytest.mark.parametrize("tag", ['<script src="https://cdn.example.org/x.js"></script>', '<img src="//example.org/x.png">',
                                 '<link rel="stylesheet" href="https://example.org/x.css">'])
def test_pages_that_would_load_something_are_found(tmp_path, tag):
    page(tmp_path, "index.html", tag)
    assert "loads" in docs.problems(tmp_path)[0]


def test_links_are_rewritten_for_their_page():
    assert docs.site_target("/core/errors.html#SuiteError", "video/pose.html") == "../core/errors.html#suiteerror"
    assert docs.site_target("10_errors.ipynb", "core/cache.html") == "errors.html"
    assert docs.site_target("../video/40_pose.ipynb#Two-people", "core/cache.html") == "../video/pose.html#two-people"
    assert docs.site_target("../LICENSE", "index.html") == "LICENSE.txt"
    assert docs.site_target("https://example.org/A#B", "index.html") == "https://example.org/A#B"
    assert docs.readme_target("../LICENSE") == "LICENSE"
    assert docs.readme_target("core/10_errors.ipynb") == docs.readme_target("/core/errors.html") == "nbs/core/10_errors.ipynb"


def test_formulas_become_mathml_and_code_keeps_its_dollars():
    html = docs.to_html("the score $F_1 = 2pr/(p+r)$, and `$HOME`\n\n$$\\sum_i x_i$$")
    assert html.count("<math") == 2 and 'display="block"' in html and "$HOME" in html


def test_readers_see_no_directives():
    cell = nbformat.v4.new_code_cell("#| echo: false\n#| output: asis\nshow_doc(f)")
    shown = '---\n\n[source](/x){target="_blank"}\n\n### f\n\n*Does it.*'
    cell.outputs = [nbformat.v4.new_output("execute_result", {"text/markdown": shown})]
    text = docs.cleaned(cell).source
    assert "### f" in text and "source" not in text and "---" not in text
    assert docs.cleaned(nbformat.v4.new_code_cell("#| include: false\n1")) is None
    assert docs.cleaned(nbformat.v4.new_code_cell("#| slow\nf()")).source == "f()"


def test_a_small_site_is_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    entries = ["index.ipynb", {"section": "core", "contents": ["core/10_errors.ipynb"]}]
    raw = {"index.ipynb": "---\ntitle: Start\n---", "core/10_errors.ipynb": "---\ntitle: Errors\ndescription: All codes\n---"}
    for name, front in raw.items():
        nb = nbformat.v4.new_notebook()
        nb.cells = [nbformat.v4.new_raw_cell(front),
                    nbformat.v4.new_markdown_cell("## One\n\n[`x`](/core/errors.html#one)\n\n## Two"),
                    nbformat.v4.new_code_cell("print('<b>')", outputs=[nbformat.v4.new_output("stream", text="<b>\n")])]
        path = tmp_path / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, path)
    docs.render_site(tmp_path / "proc", tmp_path / "site", entries)
    assert docs.problems(tmp_path / "site") == []
    text = (tmp_path / "site/core/errors.html").read_text("utf-8")
    assert "<h1>Errors</h1>" in text and "All codes" in text and 'href="../index.html"' in text and "&lt;b&gt;" in text
    assert (tmp_path / "site/LICENSE.txt").is_file() and (tmp_path / "site/contributing.html").is_file()

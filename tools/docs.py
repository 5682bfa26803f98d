"""The site and the README.   docs.py site | readme [--check]

site    Quarto renders it where it is on PATH. Elsewhere nbdev's processed notebooks go through nbconvert into the
        same pages with the same sidebar. Links are checked; a page asks no other machine for anything.
readme  README.md from nbs/index.ipynb; with --check only tells whether it is up to date.
"""

import os
import re
import shutil
import sys
import tempfile
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from posixpath import normpath, relpath
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat
import yaml
from jinja2 import Environment, FileSystemLoader
from latex2mathml.converter import convert as mathml
from fastcore.nbio import mk_cell
from nbconvert import HTMLExporter, MarkdownExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbdev import processors, serve
from nbdev.config import nbpath2html
from nbdev.process import Processor
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parent.parent
NBS, SITE = ROOT / "nbs", ROOT / "_docs"
SECTIONS = {
    "tutorials": "Tutorials",
    "behavior": "behavior · what people do on video",
    "tasks": "tasks · what a worker is doing",
    "lens": "lens · which exhibit is this",
    "ranking": "ranking · which one is better",
    "ocad": "ocad · anomalies in telecom series",
    "serve": "serve · the web service",
    "suite": "suite · the ai-suite command",
    "video": "video · shared tools",
    "image": "image · shared tools",
    "core": "core · shared tools",
}
# files of the repository that pages link to, and where the site holds them
FILES = {"LICENSE": "LICENSE.txt", "NOTICE": "NOTICE.txt", "CONTRIBUTING.md": "contributing.html"}


# ---- which pages there are


def number(path: Path) -> tuple[int, str]:
    "Sort key of a notebook: its number, then its name."
    digits = re.match(r"\d+", path.name)
    return int(digits[0]) if digits else 0, path.name


def sidebar() -> list[Any]:
    "The sidebar as Quarto writes it: notebook paths, and sections of them."
    folders = {name: sorted((NBS / name).glob("[!._]*.ipynb"), key=number) for name in SECTIONS}
    sections = [
        {"section": SECTIONS[name], "contents": [str(nb.relative_to(NBS)) for nb in nbs]}
        for name, nbs in folders.items() if nbs
    ]
    return ["index.ipynb", *sections]


def write_sidebar() -> None:
    "Write sidebar.yml, which _quarto.yml names."
    tree = {"website": {"sidebar": {"contents": sidebar()}}}
    (NBS / "sidebar.yml").write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")


def notebooks(entries: list[Any]) -> list[str]:
    "All notebook paths of a sidebar, in order."
    return [nb for entry in entries for nb in ([entry] if isinstance(entry, str) else notebooks(entry["contents"]))]


def page_of(nb: str) -> str:
    "Page of a notebook: core/10_errors.ipynb → core/errors.html"
    return nbpath2html(nb).as_posix()


# ---- a processed notebook


def with_types(cell: Any) -> None:
    "Let names that only annotations use be there when show_doc reads the annotations."
    if cell.cell_type == "code": cell.source = cell.source.replace("if TYPE_CHECKING:", "if True:")


class KeepIntroduction(Processor):
    "nbdev takes the whole first cell for the title: give what follows title and summary a cell of its own."

    def begin(self) -> None:
        "Split the first cell."
        first = self.nb.cells[0]
        found = re.match(r"# .*\n(?:\s*\n)*(?:>.*\n?)*", first.source) if first.cell_type == "markdown" else None
        rest = first.source[found.end():].strip() if found else ""
        if not found or not rest: return
        first.source = found[0].strip()
        self.nb.cells.insert(1, mk_cell(rest, "markdown"))


class Processors(processors.FilterDefaults):
    "nbdev's processors, after our own two."

    def base_procs(self) -> list[Any]:
        "What is done to each cell, in order."
        return [KeepIntroduction, with_types, *super().base_procs()]


def needs_run(cell: Any) -> bool:
    "Only what show_doc describes has to run, and show_doc itself. nbdev would run every cell that imports something."
    if cell.cell_type != "code" or not cell.source or cell.directives_.get("eval", "").lower() == "false": return False
    exported = {"export", "exports", "exporti", "exec_doc"} & cell.directives_.keys()
    return bool(exported or re.search(r"^show_doc\(", cell.source, flags=re.M))


def processed(**kwargs: Any) -> Path:
    "The folder of notebooks that nbdev has processed."
    assert processors._do_eval and serve.FilterDefaults, "nbdev has changed: look at its processors again"
    processors._do_eval, serve.FilterDefaults = needs_run, Processors
    return Path(serve.proc_nbs(n_workers=0, force=True, **kwargs))


def directives(cell: Any) -> dict[str, str]:
    "The `#| key: value` lines of a cell."
    lines = re.findall(r"^#\|\s*([\w-]+):?\s*(.*)$", cell.source, flags=re.M)
    return {key: value.strip() for key, value in lines}


def text_of(output: Any) -> str:
    "The Markdown of an output."
    return "".join(output.get("data", {}).get("text/markdown", ""))


def without_quarto(text: str) -> str:
    "Markdown without the marks that only Quarto understands."
    text = re.sub(r"^:::.*$|^<!-- WARNING: THIS FILE WAS AUTOGENERATED.*$", "", text, flags=re.M)
    text = re.sub(r"^\[source\]\(.*$", "", text, flags=re.M)
    return re.sub(r"(?<=[)\]])\{[^}\n]*\}", "", text)


def cleaned(cell: Any) -> Any | None:
    "A cell as a reader sees it; None when it is not for readers."
    if cell.cell_type == "raw": return None
    if cell.cell_type == "markdown":
        cell.source = without_quarto(cell.source)
        return cell if cell.source.strip() else None
    marks = directives(cell)
    if marks.get("include") == "false": return None
    cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
    if marks.get("output") == "asis":
        text = without_quarto("\n\n".join(map(text_of, cell.outputs))).replace("\n---\n", "\n").removeprefix("---\n")
        return nbformat.v4.new_markdown_cell(f'<div class="api">\n\n{text}\n\n</div>') if text.strip() else None
    if marks.get("echo") == "false": cell.metadata.tags = ["output-only"]
    cell.metadata.pop("execution", None)
    return cell if cell.source.strip() else None


def read(path: Path) -> tuple[Any, dict[str, str]]:
    "A processed notebook for readers, and its front matter."
    nb = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    front = next((c.source for c in nb.cells if c.cell_type == "raw"), "")
    nb.cells = [cell for cell in map(cleaned, nb.cells) if cell]
    nb.metadata.language_info = {"name": "python"}
    return nb, yaml.safe_load(front.strip().strip("-")) or {}


# ---- HTML


class Renderer(IPythonRenderer):
    "nbconvert's Markdown with formulas as MathML, which browsers draw without a script."

    def inline_math(self, body: str) -> str:
        "A formula within a line."
        return str(mathml(body))

    def block_math(self, body: str) -> str:
        "A formula of its own."
        return str(mathml(body, display="block"))


def to_html(text: str) -> str:
    "Markdown as HTML."
    return str(MarkdownWithMath(renderer=Renderer(escape=False, anchor_link_text="#")).render(text))


def exporter() -> HTMLExporter:
    "nbconvert, set up for a page's body."
    tags = {"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": ["output-only"]}}
    html = HTMLExporter(config=tags, template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    html.register_filter("markdown2html", to_html)
    return html


def site_target(target: str, page: str) -> str:
    "A link as `page` needs it: from a notebook, nbdev's root-absolute address or a file of the repository."
    url = urlsplit(target)
    if url.scheme or url.netloc or not url.path: return target.lower() if target.startswith("#") else target
    at_root = normpath(url.path.lstrip("/") if url.path.startswith("/") else f"nbs/{Path(page).parent}/{url.path}")
    path = at_root.removeprefix("nbs/")
    path = FILES.get(path) or (page_of(path) if path.endswith(".ipynb") else path)
    return relpath(path, str(Path(page).parent)) + (f"#{url.fragment.lower()}" if url.fragment else "")


def with_links(body: str, page: str) -> str:
    "A page's body with lower-case anchors and with its links pointing into the site."
    frames: list[str] = []
    def keep(match: re.Match[str]) -> str: frames.append(match[0]); return f"\0{len(frames) - 1}\0"
    body = re.sub(r"srcdoc='[^']*'|<svg.*?</svg>", keep, body, flags=re.S)
    body = re.sub(r'(<h\d id=")([^"]+)"', lambda m: m[1] + m[2].lower() + '"', body)
    body = re.sub(r'(\bhref=")([^"]+)"', lambda m: m[1] + site_target(m[2], page) + '"', body)
    return re.sub(r"\0(\d+)\0", lambda m: frames[int(m[1])], body)


def headings(body: str) -> list[tuple[int, str, str]]:
    "(level, anchor, text) of the second and third headings."
    found = re.findall(r'<h([23]) id="([^"]+)">(.*?)<a class="anchor-link"', body, flags=re.S)
    return [(int(level), anchor, re.sub(r"<[^>]+>", "", text)) for level, anchor, text in found]


def style() -> str:
    "The style sheet, with the colours of code in light and dark."
    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("friendly", "github-dark"))
    code = f"{light}\n@media screen and (prefers-color-scheme:dark){{\n{dark}\n}}\n"
    return code + (ROOT / "tools/site.css").read_text(encoding="utf-8")


def site_tree(entries: list[Any], titles: dict[str, str]) -> list[Any]:
    "The sidebar with titles and pages in place of notebooks."
    return [
        {"title": titles[e], "page": page_of(e)} if isinstance(e, str)
        else {"section": e["section"], "pages": site_tree(e["contents"], titles)}
        for e in entries
    ]


def render_site(folder: Path, site: Path, entries: list[Any]) -> None:
    "Write the page of every notebook in `entries`, and what the pages need, into `site`."
    nbs = notebooks(entries)
    read_nbs = {nb: read(folder / nb) for nb in nbs}
    titles = {nb: front.get("title", Path(nb).stem) for nb, (_, front) in read_nbs.items()}
    template = Environment(loader=FileSystemLoader(ROOT / "tools"), autoescape=True).get_template("site.html.j2")
    html, tree = exporter(), site_tree(entries, titles)
    fill = partial(template.render, tree=tree, relpath=relpath)
    for i, nb in enumerate(nbs):
        page = page_of(nb)
        body = with_links(html.from_notebook_node(read_nbs[nb][0])[0], page)
        around = [{"title": titles[nbs[j]], "page": page_of(nbs[j])} if 0 <= j < len(nbs) else None for j in (i - 1, i + 1)]
        write(site / page, fill(page=page, title=titles[nb], lead=read_nbs[nb][1].get("description", ""), body=body,
                                toc=headings(body), notebook=f"nbs/{nb}", around=around))
    write(site / "site.css", style())
    for name in ("LICENSE", "NOTICE"): shutil.copy(ROOT / name, site / FILES[name])
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("\n", 1)[1]
    body = with_links(to_html(guide), "contributing.html")
    write(site / "contributing.html", fill(page="contributing.html", title="Contributing", lead="", body=body,
                                           toc=headings(body), notebook="CONTRIBUTING.md", around=[None, None]))


def write(path: Path, text: str) -> None:
    "Write a page, and the folders above it."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# ---- links


class Links(HTMLParser):
    "The anchors of a page, where it points, and what it would load."

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        "Sort the attributes of a tag."
        values = {key: value or "" for key, value in attrs}
        if "id" in values: self.ids.add(values["id"])
        if tag == "a" and "href" in values: self.links.append(values["href"])
        if tag in ("img", "script", "iframe", "source", "video", "audio", "embed") and "src" in values:
            self.loads.append(values["src"])
        if tag == "link" and "href" in values: self.loads.append(values["href"])


def links_of(path: Path) -> Links:
    "The links of a page."
    found = Links()
    found.feed(path.read_text(encoding="utf-8"))
    return found


def problems(site: Path) -> list[str]:
    "Links of a site that lead nowhere, and files that a page would fetch from elsewhere."
    pages = {path.relative_to(site).as_posix(): links_of(path) for path in sorted(site.rglob("*.html"))}
    bad = []
    for page, found in pages.items():
        for target in found.links + found.loads:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                if target in found.loads and url.scheme != "data": bad.append(f"{page} loads {target}")
                continue
            path = normpath(str(Path(page).parent / unquote(url.path))) if url.path else page
            if not (site / path).is_file(): bad.append(f"{page}: no such page: {target}")
            elif url.fragment and path in pages and unquote(url.fragment) not in pages[path].ids:
                bad.append(f"{page}: no such anchor: {target}")
    return bad


# ---- README


def readme_target(target: str) -> str:
    "A link of nbs/index.ipynb as README.md needs it."
    url = urlsplit(target)
    if url.scheme or url.netloc or not url.path: return target
    if not url.path.startswith("/"): return relpath(f"nbs/{url.path}", ".") + (f"#{url.fragment}" if url.fragment else "")
    known = {"/" + page_of(nb): f"nbs/{nb}" for nb in notebooks(sidebar())}
    return known.get(url.path, target)


def readme() -> str:
    "README.md as nbs/index.ipynb has it now."
    nb, front = read(processed(file_glob="index.ipynb") / "index.ipynb")
    text = MarkdownExporter().from_notebook_node(nb)[0]
    text = re.sub(r"(?<=\]\()([^)\s]+)(?=\))", lambda m: readme_target(m[1]), text)
    head = f"# {front['title']}\n\n" + (f"> {front['description']}\n\n" if "description" in front else "")
    note = "<!-- made from nbs/index.ipynb by `make readme`: edit that notebook -->\n\n"
    return note + head + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


# ---- commands


def build_readme(check: bool) -> None:
    "Write README.md, or say whether it is up to date."
    path, text = ROOT / "README.md", readme()
    if check and path.read_text(encoding="utf-8") != text: sys.exit("README.md is not what nbs/index.ipynb says: make readme")
    if not check: path.write_text(text, encoding="utf-8")


def build_with_quarto() -> None:
    "Let nbdev and Quarto build the site."
    from nbdev.quarto import nbdev_docs

    processors._do_eval, serve.FilterDefaults = needs_run, Processors
    nbdev_docs.__wrapped__(n_workers=0)
    start = SITE / "index.html"
    text = start.read_text(encoding="utf-8")
    for name in FILES:
        shutil.copy(ROOT / name, SITE / f"{name}.txt")
        text = text.replace(f'href="../{name}"', f'href="{name}.txt"')
    start.write_text(text, encoding="utf-8")


def build_site() -> None:
    "Build _docs/ whole, check it, and put it in place of the older one."
    write_sidebar()
    if shutil.which("quarto"): return build_with_quarto()
    entries = sidebar()
    with tempfile.TemporaryDirectory(dir=ROOT, prefix="_docs.") as tmp:
        render_site(processed(), Path(tmp), entries)
        if bad := problems(Path(tmp)): sys.exit("\n".join(bad))
        shutil.rmtree(SITE, ignore_errors=True)
        shutil.copytree(tmp, SITE)
    print(f"{len(notebooks(entries)) + 1} pages, links checked: _docs/index.html")


if __name__ == "__main__":
    os.chdir(ROOT)
    what = sys.argv[1:]
    if what == ["site"]: build_site()
    elif what in (["readme"], ["readme", "--check"]): build_readme("--check" in what)
    else: sys.exit(__doc__)

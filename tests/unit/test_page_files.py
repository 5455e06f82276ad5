"""The page's files: complete, pinned, and with addresses that change when they do."""

import hashlib
import json
import re
from pathlib import Path

from api.page.files import INDEX, WEB, PageFiles

LIBRARIES = json.loads((WEB.parent / "libraries.json").read_text())
OWN = [path for path in WEB.rglob("*") if path.is_file() and "vendor" not in path.parts]
IMPORT = re.compile(r"""(?:from|import)\s*\(?\s*["'](\.{1,2}/[^"']+)["']""")


def test_the_libraries_are_what_is_pinned() -> None:
    pinned = {name: digest for one in LIBRARIES for name, digest in one["sha256"].items()}
    vendor = WEB / "vendor"
    there = {
        path.relative_to(vendor).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in vendor.rglob("*")
        if path.is_file()
    }
    assert there == pinned
    for one in LIBRARIES:
        assert any(target.endswith("LICENSE") for target in one["files"].values()), one["package"]


def test_whatever_is_imported_is_there() -> None:
    for path in OWN:
        if path.suffix == ".js":
            for target in IMPORT.findall(path.read_text()):
                assert (path.parent / target).resolve().is_file(), f"{path.name}: {target}"


def test_whatever_the_index_names_is_there() -> None:
    files = PageFiles()
    index = files.get(INDEX)
    assert index is not None
    named = re.findall(r'(?:src|href)="page/([^/"]+)/([^"]+)"', index.content.decode())
    assert len(named) > 5
    for version, name in named:
        assert version == files.version
        assert files.get(name) is not None, name


def test_no_script_style_or_outside_host_in_the_page_itself() -> None:
    index = (WEB / INDEX).read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", index)
    for path in OWN:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, path.name
        assert "https://" not in text, path.name


def test_the_version_changes_with_any_file(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text("1")
    one = PageFiles(tmp_path).version
    (tmp_path / "a.js").write_text("2")
    two = PageFiles(tmp_path).version
    (tmp_path / "a.js").rename(tmp_path / "b.js")
    assert len({one, two, PageFiles(tmp_path).version}) == 3


def test_text_is_packed_and_fonts_are_not() -> None:
    files = PageFiles()
    script = files.get("app.js")
    font = files.get("vendor/inter/inter-latin.woff2")
    assert script is not None
    assert font is not None
    assert script.gzipped is not None
    assert len(script.gzipped) < len(script.content)
    assert (font.gzipped, font.media_type) == (None, "font/woff2")
    assert files.get("../files.py") is None
    assert files.get("missing.js") is None

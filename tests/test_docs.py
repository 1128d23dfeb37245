"""The documentation does not rot: the site builds, links lead somewhere, commands parse."""

import argparse
import ast
import importlib.util
import re
import runpy
import shlex
import signal
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock
from urllib.parse import unquote, urlsplit

import pytest

from edg.cli import main as cli
from edg.core import config
from edg.core.errors import EdgError
from edg.core.process import stopping
from edg.core.video import read_frames
from edg.data.kinds import DATA_KINDS
from edg.merging.recipe import load_recipe
from edg.runner.train import read_runs
from edg.systems.base import load_part

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("scripts/*.py"), *ROOT.glob("bench/*.py"), ROOT / "run_merge.py"]
    if 'if __name__ == "__main__"' in path.read_text()
)
PAGES = [ROOT / "README.md", ROOT / "bench/README.md", *sorted((ROOT / "docs").glob("*.md"))]
ERRORS = {"UsageError", "BadFileError", "MachineError", "SomeFailedError"}
LOOKED_UP = (
    *(
        f"edg/runner/{name}.py"
        for name in ("clips", "dials", "equip", "flags", "measure", "merging", "score")
    ),
    *(f"edg/{name}.py" for name in ("api", "demo", "core/formats", "cli/sweep", "runner/vbench")),
    *("edg/metrics/*.py", "edg/report/*.py"),
)
FOREIGN = {"--nproc_per_node", "--strict"}  # flags of torchrun, mkdocs and others that pages name


def named(paths):
    return pytest.mark.parametrize("page", paths, ids=lambda path: str(path.relative_to(ROOT)))


# ---- what a page says --------------------------------------------------------------------------------------


def code_blocks(text):
    """Lines of fenced and of indented blocks; a line that ends in a backslash goes on in the next."""
    fenced, lines = False, []
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
    return re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()


def inline_code(text):
    prose = "\n".join(line for line in text.splitlines() if not line.startswith(("    ", "**`")))
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", prose, flags=re.DOTALL))


def ours(line):
    """(program, arguments) for every command of this project in a line of shell."""
    try:
        words = shlex.split(line.removeprefix("$ "), comments=True)
    except ValueError:  # an apostrophe: prose, not shell
        return
    for command in split_at(words, {"&&", "||", ";", "|", "&"}):
        while command and re.fullmatch(r"[A-Z_]+=\S*", command[0]):
            command = command[1:]
        if command[:1] in (["python"], ["python3"], ["torchrun"]):
            skip = next((i for i, w in enumerate(command) if w == "edg" or w.endswith(".py")), None)
            command = [] if skip is None else command[skip:]
        elif command[:2] == ["bash", "run.sh"]:
            command = ["scripts/infer_multi.py", *command[2:]]
        elif command[:1] != ["edg"]:
            command = []
        if command[:1] == ["edg"] and len(command) > 1 and re.fullmatch(r"[a-z][a-z-]*", command[1]):
            yield f"edg {command[1]}", command[2:]
        elif command and command[0].endswith(".py"):
            yield command[0], command[1:]


def split_at(words, ends):
    part = []
    for word in [*words, ";"]:
        if word.rstrip(";") != word or word in ends:
            yield [*part, word.rstrip(";")] if word not in ends and word.rstrip(";") else part
            part = []
        else:
            part.append(word)


class Caught(BaseException):
    """A parser, on the point of parsing."""


@cache
def parser_of(program):
    """The very parser that `edg NAME` or a script uses: it is run, up to where it parses its flags."""

    def caught(self, *args, **kwargs):
        raise Caught(self)

    patches = [
        mock.patch.object(argparse.ArgumentParser, "parse_args", caught),
        mock.patch.object(cli.Parser, "parse_args", caught),
        mock.patch.object(sys, "argv", [program]),
        mock.patch.object(sys, "path", [str(ROOT), *sys.path]),
        mock.patch.object(stopping, "force"),  # it would end the tests after the next signal
        mock.patch.object(signal, "signal"),
    ]
    for patch in patches:
        patch.start()
    try:
        if program.startswith("edg "):
            assert program.split()[1] in cli.COMMANDS, f"there is no {program}"
            cli.main([program.split()[1]])
        else:
            runpy.run_path(str(ROOT / program), run_name="__main__")
    except Caught as found:
        return found.args[0]
    finally:
        for patch in patches:
            patch.stop()
    raise AssertionError(f"{program} parses no flags")


def options_of(parser):
    known = {name for action in parser._actions for name in action.option_strings}
    return known | {name.replace("_", "-") for name in known} | {name.replace("-", "_") for name in known}


def trouble(program, args):
    """What is wrong with a command, "" if nothing. `...` stands for anything."""
    if not program.startswith("edg ") and not (ROOT / program).is_file():
        return f"{program} is no file"
    parser = parser_of(program)
    for arg in args:
        if (
            arg.startswith(("configs/", "prompts/", "scripts/", "edg/", "tests/"))
            and not (ROOT / arg).exists()
        ):
            return f"{arg} does not exist"
    if any("..." in arg or arg[:1] in "[{" for arg in args):
        strange = {a.partition("=")[0] for a in args if a.startswith("--")} - options_of(parser)
        return f"unknown: {', '.join(sorted(strange))}" if strange else ""
    if {"-h", "--help"} & set(args):
        return ""
    try:
        with mock.patch.object(argparse.ArgumentParser, "exit", side_effect=Caught):
            made = parser.parse_args(args)
            if program == "edg merge" and made.recipe and not made.recipe.isupper():
                load_recipe(made.recipe)
            if program == "edg train" and made.config.startswith("configs/"):
                for run in read_runs(
                    made.config, made.overrides, (made.stages or "").split(",")[: bool(made.stages)]
                ):
                    config.build(load_part(DATA_KINDS[run.data["kind"]]), run.data, "data")
    except (EdgError, Caught) as error:
        return str(error) or "argparse refuses it"
    return ""


# ---- commands and flags ------------------------------------------------------------------------------------


@named(PAGES)
def test_commands_parse(page):
    lines = [line for line in code_blocks(page.read_text("utf-8")) if list(ours(line))]
    wrong = {line: told for line in lines for program, args in ours(line) if (told := trouble(program, args))}
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_find_their_modules_from_any_folder(program, tmp_path):
    done = subprocess.run([sys.executable, ROOT / program, "--help"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.startswith(b"usage: ") and not list(tmp_path.iterdir())


def test_commands_are_found():
    found = [what for page in PAGES for line in code_blocks(page.read_text("utf-8")) for what in ours(line)]
    assert len(found) > 50
    assert {"edg merge", "edg sample", "run_merge.py", "scripts/infer_multi.py"} <= {
        name for name, _ in found
    }


@pytest.mark.parametrize(
    "line, told",
    [
        ("edg merge edg --base a --tuned b", ""),
        ("edg merge edg --bass a", "unknown flag --bass"),
        ("edg merge edge", "no recipe edge"),
        ("edg train configs/train/sprites.yaml train.lr=1", "stages"),
        ("edg train configs/train/dynamicrafter_512_adapter.yaml 'data={kind: cache, path: x}'", ""),
        ("edg train configs/train/dynamicrafter_512_adapter.yaml data.kind=cache data.path=x", "data.root"),
        ("edg sample --T soon", "invalid int value"),
        ("edg sample --T=300 ... --ddim_step 4", "unknown: --ddim_step"),
        ("torchrun --nproc_per_node=2 scripts/infer_multi.py --bs 2", ""),
        ("CKPT_PATH=x bash run.sh --sede 1   # with another seed", "unknown flag --sede"),
        ("edg train configs/train/nothing.yaml", "does not exist"),
        ("git pull && python bench/step.py --pears 1", "refuses"),
    ],
)
def test_a_wrong_command_is_noticed(line, told, capsys):
    problems = [trouble(*command) for command in ours(line)]
    assert len(problems) == 1
    assert told in problems[0] if told else problems[0] == ""


@named(PAGES)
def test_commands_in_the_text_are_known(page):
    """`edg NAME --flag` between backticks; and a flag alone is one of some program's here."""
    wrong = []
    for code in inline_code(page.read_text("utf-8")):
        if re.match(r"edg [a-z]", code):
            [(program, args), *_] = list(ours(code)) or [(code, [])]
            known = program.removeprefix("edg ") in cli.COMMANDS
            flags = {word.split("=")[0] for word in args if word.startswith("--")}
            wrong += [code] * (not known or not flags <= options_of(parser_of(program)))
        elif found := re.match(r"--[a-z][\w-]+", code, flags=re.IGNORECASE):
            wrong += [code] * (found[0] not in every_flag() | FOREIGN)
    assert not wrong


@cache
def every_flag():
    scripts = [*ROOT.glob("scripts/*.py"), *ROOT.glob("bench/*.py"), ROOT / "run_merge.py"]
    own = [path for path in scripts if re.search(r" parser = .*Parser\(", path.read_text("utf-8"))]
    programs = [str(path.relative_to(ROOT)) for path in own] + [f"edg {name}" for name in cli.COMMANDS]
    return set().union(*(options_of(parser_of(program)) for program in programs))


def test_every_command_has_its_section():
    sections = re.findall(r"^## `edg ([a-z-]+)`", (ROOT / "docs/howto.md").read_text("utf-8"), re.MULTILINE)
    assert set(sections) == set(cli.COMMANDS)


# ---- messages ----------------------------------------------------------------------------------------------


@cache
def messages():
    """Every text of the code, with what is put in at run time as a gap."""
    found = set()
    for path in [*(ROOT / "edg").rglob("*.py"), *(ROOT / "experiments").glob("*.py"), ROOT / "run_merge.py"]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "{}" for v in node.values]
                found.add("".join(parts))
    return found


def quoted_messages():
    """The bold terms of the page."""
    text = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
    return re.findall(r"\*\*`([^`]+)`\*\*", text)


def given(path):
    """What a module's errors begin with, gaps as {}."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ERRORS
            and node.args
        ):
            for part in ast.walk(node.args[0]):
                if isinstance(part, ast.JoinedStr):
                    yield "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in part.values)
                    break
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value
                    break


def says(text, message):
    """Whether a message's words, all but those in capitals, occur in a text in their order."""
    at = 0
    for part in re.split(r"\b[A-Z]+\b", message):
        at = text.find(part.strip(), at)
        if at < 0:
            return False
        at += len(part.strip())
    return True


def test_quoted_messages_are_in_the_code():
    """A bold line of the page is a message; WORDS IN CAPITALS stand for what is put in."""
    quoted = quoted_messages()
    assert len(quoted) > 40
    short = [text for text in messages() if len(text) < 300]  # no docstrings
    assert not [message for message in quoted if not any(says(text, message) for text in short)]
    assert not any(says(text, "FILE is truncated or an incomplete upload") for text in short)


@named([path for room in LOOKED_UP for path in sorted(ROOT.glob(room))])
def test_errors_can_be_looked_up(page):
    """Every message of these rooms that has words of its own is under a bold line, alone or in a group."""
    quoted = quoted_messages()
    texts = [text for text in given(page) if len(re.findall(r"[a-z]{2,}", text)) > 1]
    assert not [text for text in texts if not any(says(text, message) for message in quoted)]


@pytest.mark.slow
def test_the_python_of_the_page_runs(tmp_path, monkeypatch):
    block = re.search(r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text("utf-8"), re.DOTALL)[1]
    assert "steps=16" in block and '"clip.mp4"' in block
    block = block.replace("steps=16", "steps=2").replace('"clip.mp4"', repr(str(tmp_path / "clip.mp4")))
    monkeypatch.chdir(ROOT)
    exec(compile(block, "docs/api.md", "exec"), {})
    assert len(read_frames(tmp_path / "clip.mp4")) == 8


# ---- the site ----------------------------------------------------------------------------------------------


@named(PAGES[:2])
def test_links_of_the_readmes(page):
    text = page.read_text("utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text)
    local = [link for pair in links for link in pair if link and not urlsplit(link).scheme]
    lost = [link for link in local if not (page.parent / link.partition("#")[0]).exists()]
    assert not lost


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


class Links(HTMLParser):
    """links: (tag, address); ids: what an address may end in."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids |= {attributes[key] for key in ("id", "name") if attributes.get(key)}
        if tag != "link" or attributes.get("rel") in ("stylesheet", "icon"):
            self.links += [(tag, attributes[key]) for key in ("href", "src") if attributes.get(key)]


@pytest.mark.slow
def test_everything_on_the_site_is_there(site):
    pages = {path: Links(path.read_text("utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) >= len(PAGES) - 2
    lost = []
    for path, page in pages.items():
        for _, link in page.links:
            where = urlsplit(link)
            if where.scheme or where.netloc:
                continue
            target = (path.parent / unquote(where.path)).resolve() if where.path else path
            there = target.is_file() and (
                not where.fragment or unquote(where.fragment) in anchors(pages, target)
            )
            lost += [] if there else [f"{path.name}: {link}"]
    assert not lost


def anchors(pages, path):
    return pages[path].ids | {"__codelineno"} if path in pages else set()


@pytest.mark.slow
def test_nothing_is_fetched_from_the_net(site):
    for path in site.rglob("*.html"):
        loaded = [link for tag, link in Links(path.read_text("utf-8")).links if tag != "a"]
        assert not [link for link in loaded if urlsplit(link).netloc], path
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//", path.read_text("utf-8")), path


def test_the_page_of_options_is_that_of_the_declarations():
    spec = importlib.util.spec_from_file_location(
        "write_options_page", ROOT / "scripts/write_options_page.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "python scripts/write_options_page.py"

"""`edg completion`: real shells are asked what they would complete."""

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edg.cli.completion import FILES, FOLDERS, SHELLS, known
from edg.cli.main import COMMANDS, main, parser_of

ROOT = Path(__file__).parents[1]


def script(shell, capsys=None):
    return SHELLS[shell](known())


def ask_bash(tmp_path, *words):
    """The completions of the last word, in an empty folder but for what the test puts there."""
    (tmp_path / "edg.bash").write_text(script("bash"))
    code = (
        'source edg.bash; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _edg; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    run = subprocess.run(
        ["bash", "-c", code, "bash", *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    return [line for line in run.stdout.split("\n") if line]


def test_bash_commands_and_flags(tmp_path):
    assert ask_bash(tmp_path, "edg", "sa") == ["sample"]
    assert set(ask_bash(tmp_path, "edg", "")) == set(COMMANDS)
    assert ask_bash(tmp_path, "edg", "sample", "--ddim_s") == ["--ddim_steps"]
    assert {"--prompt_dir", "--preview"} <= set(ask_bash(tmp_path, "edg", "sample", "--seed", "3", "--pr"))
    assert ask_bash(tmp_path, "edg", "info", "--ddim_s") == []


def test_bash_values(tmp_path):
    assert ask_bash(tmp_path, "edg", "sample", "--solver", "d") == ["ddim", "dpmpp"]
    assert ask_bash(tmp_path, "edg", "sample", "--solver", "=", "dp") == ["dpmpp"]
    assert ask_bash(tmp_path, "edg", "sample", "--solver", "=") == ["ddim", "dpmpp", "unipc"]
    assert ask_bash(tmp_path, "edg", "completion", "z") == ["zsh"]
    assert ask_bash(tmp_path, "edg", "sample", "--seed", "") == []


def test_bash_files_and_folders(tmp_path):
    (tmp_path / "my prompts").mkdir()
    (tmp_path / "my file.pt").touch()
    assert ask_bash(tmp_path, "edg", "sample", "--prompt_dir", "my") == ["my prompts"]
    found = ask_bash(tmp_path, "edg", "sample", "--dynamic_path", "my")
    assert sorted(found) == ["my file.pt", "my prompts"]


def test_every_flag_of_every_command_is_in_every_script():
    scripts = {shell: script(shell) for shell in SHELLS}
    for name in COMMANDS:
        for action in parser_of(name)._actions:
            for option in action.option_strings if action.help != "==SUPPRESS==" else ():
                assert f"{option} " in scripts["bash"] or f'{option}"' in scripts["bash"], option
                assert f"*{option}[" in scripts["zsh"], option
                long = f"-l {option[2:]} " if option.startswith("--") else f"-s {option[1:]} "
                assert long in scripts["fish"], option


def test_values_follow_what_the_parser_says():
    flags = {flag.names[0]: flag for flag in known()["sample"][1]}
    assert flags["--fit"].values == ("stretch", "crop", "pad") and flags["--savedir"].values == FOLDERS
    assert flags["--analytic_init_path"].values == FILES and flags["--seed"].values == ()
    assert flags["--seed"].wants and not flags["--loop"].wants and not flags["--released"].wants


def test_it_is_quick(capsys):
    code = (
        "import sys, edg.cli.main; edg.cli.main.main(['completion', 'bash']); "
        "print([m for m in ('torch', 'av') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("_edg() {") and run.stdout.splitlines()[-1] == "[]"
    assert main(["completion", "tcsh"]) == 2 and "invalid choice: 'tcsh'" in capsys.readouterr().err


# ---- read without the shells: zsh quotes as sh does, fish has backslashes in its single quotes -------------


def fish_words(line):
    """A line of fish as words; no quote stays open."""
    word = r"(?:'(?:[^'\\]|\\.)*'|[^\s']+)"
    assert re.fullmatch(f"{word}( {word})*", line), line
    words = re.findall(word, line)
    return [re.sub(r"\\(.)", r"\1", word[1:-1]) if word.startswith("'") else word for word in words]


def test_fish_is_read_as_meant():
    """Every line is one `complete`, for one command; its parts are those of the parser."""
    lines = [fish_words(line) for line in script("fish").splitlines()]
    assert all(words[:3] == ["complete", "-c", "edg"] for words in lines)
    for name, (help, flags) in known().items():
        assert ["complete", "-c", "edg", "-f", "-n", "__fish_use_subcommand", "-a", name, "-d", help] in lines
        own = [words[5:] for words in lines if words[4] == f"__fish_seen_subcommand_from {name}"]
        assert len(own) == len(flags)
        for words, flag in zip(own, flags, strict=True):
            long = [words[i + 1] for i, word in enumerate(words) if word == "-l"]
            assert long == [n[2:] for n in flag.names if n.startswith("--")]
            assert words[words.index("-d") + 1] == flag.help
            if isinstance(flag.values, tuple) and flag.values:
                assert words[words.index("-a") + 1].split() == list(flag.values)


def test_zsh_is_read_as_meant():
    """`_arguments` gets one specification for each name: *NAME[help]:what:(values)."""
    text = script("zsh")
    listed, cases = text.split('case "$command" in')
    commands = [word.split(":", 1) for word in shlex.split(listed.split("commands=(")[1].split("\n    )")[0])]
    assert [name for name, _ in commands] == list(COMMANDS)
    for name, (_, flags) in known().items():
        line = re.search(rf"^ +{re.escape(name)}\) _arguments (.*) ;;$", cases, re.MULTILINE)[1]
        found = shlex.split(line)
        expected = [(flag, option) for flag in flags for option in flag.names or [""]]
        assert len(found) == len(expected)
        for text, (flag, option) in zip(found, expected, strict=True):
            if not option:
                assert text.startswith("*: :")
                continue
            head, help, rest = re.fullmatch(r"(\*[\w-]+)\[((?:[^\[\]\\]|\\.)*)\](.*)", text).groups()
            assert head == f"*{option}" and re.sub(r"\\(.)", r"\1", help) == flag.help.replace("\\", "")
            if isinstance(flag.values, tuple) and flag.values:
                assert rest.endswith(f":({' '.join(flag.values)})")
            assert bool(rest) == bool(flag.wants or flag.values)


# ---- the shells themselves: .ci/run installs them; elsewhere the tests above stand for them ----------------


def shell(name):
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed; its script was read without it")
    return path


def test_fish(tmp_path):
    path = shell("fish")
    (tmp_path / "edg.fish").write_text(script("fish"))

    def ask(line):
        code = f"source edg.fish; complete -C '{line}'"
        env = {**os.environ, "HOME": str(tmp_path)}
        run = subprocess.run(
            [path, "-N", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
        )
        return [found.split("\t")[0] for found in run.stdout.splitlines()]

    assert ask("edg sa") == ["sample"]
    assert ask("edg sample --ddim_s") == ["--ddim_steps"]
    assert ask("edg sample --solver dp") == ["dpmpp"]
    assert ask("edg completion z") == ["zsh"]


def test_zsh(tmp_path):
    path = shell("zsh")
    (tmp_path / "edg.zsh").write_text(script("zsh"))
    env = {**os.environ, "HOME": str(tmp_path), "ZDOTDIR": str(tmp_path), "TERM": "xterm"}
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(path, [path, "-f", "-i"], env)

    def read(until, seconds=60):
        text, end = b"", time.monotonic() + seconds
        while until not in text and time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                text += os.read(terminal, 65536)
        assert until in text, text.decode(errors="replace")
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x08", "", text.decode(errors="replace"))
        return " ".join(plain.split())

    try:
        os.write(terminal, b"autoload -U compinit; compinit -u -D; source ./edg.zsh; echo re''ady\n")
        read(b"ready")
        os.write(terminal, b"edg sa\t--solv\tdp\t")  # each is completed to the end, with a space after it
        assert "sample --solver dpmpp" in read(b"dpmpp")
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)

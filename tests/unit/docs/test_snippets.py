"""Every fenced block of the pages is checked; those that need a server are in ``tests/live``.

Which block is checked how is in ``tests/support/pages.py``.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pytest
import trustme
import yaml
from packaging.requirements import Requirement

from obskit_gunicorn import ObskitGunicornConfig, hooks
from obskit_gunicorn._doctor.finding import PARTS, Finding
from tests.support import metrics_page, snippet_loader
from tests.support.helm import render_chart
from tests.support.manifests import (
    BASE,
    CHART,
    KUBERNETES,
    all_problems,
    find,
    render,
    schema_problems,
)
from tests.support.missing import find_program
from tests.support.pages import (
    KINDS,
    NOT_RUN,
    OF_ONE_TEST,
    PAGES,
    ROOT,
    RULES,
    Block,
    all_blocks,
    blocks_of,
    commands,
    has_its_own_test,
    rule_of,
)
from tests.support.promtool import (
    checks_expressions,
    metric_names,
    run_promtool,
    without_an_answer,
)
from tests.support.shop import SHOP

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCKS = all_blocks()
USERS = "prometheus:$2b$04$A6r/SeLdl6gnI3/hdl66EedB6tx3kL.3fzjG6yCgDedgRIKkccoc2\n"
KUBERNETES_RELEASE = "1.30"


def of_kind(language: str, *kinds: str) -> list[Block]:
    """Return the blocks of some kinds."""
    return [
        block
        for block in BLOCKS
        if (rule := rule_of(block)) and rule.language == language and rule.kind in kinds
    ]


# ------------------------------------------------------------------------------------------------
# That all are checked


def test_every_block_has_a_rule() -> None:
    """No block of any page is left out; a new kind of block needs a rule."""
    without = [f"{block.name} ({block.language})" for block in BLOCKS if rule_of(block) is None]
    assert not without, (
        f"no rule says how {without} is checked: write it so that one fits, "
        "or add one to RULES of tests/support/pages.py and the test that it names"
    )


def test_every_command_has_a_kind() -> None:
    """Of each command it is known what is done with it; a new one needs a line."""
    without = [
        f"{block.name}: {command.text}"
        for block in BLOCKS
        if block.language == "sh" and not has_its_own_test(block.page)
        for command in commands(block.text)
        if not command.kind
    ]
    assert not without, (
        f"nothing says how {without} is run: add the beginning of it to KINDS of "
        "tests/support/pages.py, or to NOT_RUN with the reason, and the test that deals with it"
    )


def test_no_fence_is_overlooked() -> None:
    """As many blocks are found as there are pairs of fences."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fences = re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)
        blocks = blocks_of(text, page.name)
        assert len(fences) == 2 * len(blocks), page
        for block in blocks:
            text = text.replace(textwrap.indent(block.text, "  "), "").replace(block.text, "")
        assert not re.search(r"\n\n {4}(?![-*] )\S", text), f"{page}: indented code has no language"


def test_nothing_is_said_of_what_is_not_there() -> None:
    """Each rule has a block and a test, and each command that has a kind stands somewhere."""
    used = {rule_of(block) for block in BLOCKS}
    assert [rule.kind for rule in RULES if rule not in used] == []
    for test in {each for rule in RULES for each in rule.test.split(" and ")}:
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), test
    shown = [command.text for block in BLOCKS for command in commands(block.text)]
    unused = [start for start in KINDS if not any(re.match(start, one) for one in shown)]
    assert unused == []
    pages = [str(page.relative_to(ROOT)) for page in PAGES]
    for pattern, test in OF_ONE_TEST.items():
        assert any(re.fullmatch(pattern, page) for page in pages)
        assert (ROOT / test.partition("::")[0]).exists()


def test_what_has_no_rule_is_found() -> None:
    """A block of an unknown language, and a text that nothing has printed, have none."""
    odd, shown = blocks_of("```toml\nx = 1\n```\n\nText.\n\n```text\nx\n```\n", "page.md")
    assert rule_of(odd) is None
    assert rule_of(shown) is None
    printed = blocks_of("```sh\ncurl x\n```\n\n```text\nx\n```\n", "page.md")
    assert printed[0].shows == "x\n"
    assert rule_of(printed[1]) is not None
    assert [one.kind for one in commands("curl x  # it's\nrm -r x\n")] == ["asks", ""]


# ------------------------------------------------------------------------------------------------
# Python


def _files(block: Block, folder: Path) -> str:
    """Write a block as a file, and what it imports; return what is to be done with it."""
    rule = rule_of(block)
    assert rule is not None
    for name, text in SHOP.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    # A part of a file that stands on the page already, without its first line.
    text = block.text
    if "ObskitGunicornConfig" not in text.partition("class ")[0] and "class Config(Obskit" in text:
        text = f"from obskit_gunicorn import ObskitGunicornConfig\n\n\n{text}"
    if rule.kind == "configuration":
        here = re.sub(r"/etc/shop(/tls)?|/run/secrets", str(folder), text)
        (folder / "gunicorn.conf.py").write_text(here, "utf-8")
        return "load"
    named = re.match(r"# ([\w/]+\.py)\n", text)
    path = folder / (named[1] if named else "statements.py")
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_python(tmp_path: Path) -> None:
    """Gunicorn loads every configuration with its application, and all other Python runs."""
    certificates = trustme.CA()
    certificate = certificates.issue_cert("localhost")
    blocks = of_kind("python", "configuration", "module", "statements")
    cases = []
    for number, block in enumerate(blocks):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "metrics.crt").write_bytes(certificate.cert_chain_pems[0].bytes())
        (folder / "metrics.key").write_bytes(certificate.private_key_pem.bytes())
        (folder / "prometheus-ca.crt").write_bytes(certificates.cert_pem.bytes())
        (folder / "metrics-token").write_text("0123456789abcdef\n", "utf-8")
        (folder / "metrics.htpasswd").write_text(USERS, "utf-8")
        cases.append((str(folder), _files(block, folder)))
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "gunicorn.conf.py").write_text("workers = 'four'\n", encoding="utf-8")
    cases.append((str(wrong), "load"))
    done = subprocess.run(
        [sys.executable, snippet_loader.__file__],
        input=json.dumps(cases),
        env={
            **{name: value for name, value in os.environ.items() if "OBSKIT" not in name},
            "PYTHONPATH": str(ROOT),
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    *found, (status, said) = json.loads(done.stdout)
    assert status == 1, "what is wrong is not found"
    assert "four" in said
    failed = [
        f"{block.name}: {said}"
        for block, (status, said) in zip(blocks, found, strict=True)
        if status or "did you mean" in said
    ]
    assert failed == []


def test_tests(tmp_path: Path) -> None:
    """The tests that a page has pass, under pytest."""
    for name, text in SHOP.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    blocks = of_kind("python", "tests")
    for number, block in enumerate(blocks):
        (tmp_path / f"test_{number}.py").write_text(block.text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cloudcoil", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    assert f"{len(blocks)} passed" in done.stdout


def test_signature() -> None:
    """Each signature is that of a hook."""
    for block in of_kind("python", "signature"):
        names: dict[str, Any] = {}
        exec(f"from __future__ import annotations\n{block.text}    ...\n", names)
        (name,) = re.findall(r"^def (\w+)", block.text)
        shown = inspect.signature(names[name]).parameters
        real = inspect.signature(getattr(ObskitGunicornConfig, name)).parameters
        assert [(p.name, p.kind, p.default) for p in shown.values()] == [
            (p.name, p.kind, p.default) for p in real.values()
        ], block.name


def test_default() -> None:
    """Each value that an option is said to have without more is the one that it has."""
    for block in of_kind("python", "default"):
        names: dict[str, Any] = {}
        exec(f"from __future__ import annotations\n{block.text}", names)
        name = block.text.partition(":")[0]
        assert names[name] == getattr(ObskitGunicornConfig, name), block.name


def test_names() -> None:
    """What another package's file imports from it is what ours has under the same names."""
    for block in of_kind("python", "another package"):
        compile(block.text, block.name, "exec")
        (imported,) = re.findall(r"^from \w+\.hooks import (.+)$", block.text, re.MULTILINE)
        for name in imported.split(", "):
            assert hasattr(hooks, name), block.name


# ------------------------------------------------------------------------------------------------
# What Prometheus reads


def test_prometheus(tmp_path: Path) -> None:
    """Promtool accepts every configuration, every rule and every query."""
    for block in of_kind("yaml", "scrapes", "rules"):
        (tmp_path / "file.yml").write_text(block.text, encoding="utf-8")
        is_rules = "\ngroups:" in f"\n{block.text}"
        how = ["rules"] if is_rules else ["config", "--syntax-only"]
        status, said = run_promtool("check", *how, tmp_path / "file.yml")
        assert status == 0, (block.name, said)
    queries = [block.text for block in of_kind("promql", "queries")]
    status, said = checks_expressions(queries, tmp_path)
    assert status == 0, said


def test_each_query_has_an_answer(tmp_path: Path) -> None:
    """A Prometheus that has scraped the metrics says something to each, those in a line too."""
    queries = [block.text.strip() for block in of_kind("promql", "queries")]
    in_lines = [
        query
        for page in PAGES
        for query in re.findall(r"`([^`\n]*gunicorn_[^`\n]*)`", page.read_text("utf-8"))
        if re.match(r"(rate|sum|avg)\b[ (]|gunicorn_\w+ / ", query)
    ]
    assert len(in_lines) > 3
    queries += in_lines
    series = list(_series(set().union(*map(metric_names, queries))))
    assert without_an_answer(queries, series, tmp_path) == []


def _series(names: set[str]) -> Iterator[tuple[str, str]]:
    """Yield series of samples, with the labels that metrics and targets have."""
    documented = {
        f"{row.name}{suffix}": (row.type, row.labels)
        for row in metrics_page.rows()
        for suffix in (("_bucket", "_sum", "_count") if row.type == "histogram" else ("",))
    }
    for name in sorted(names):
        kind, labels = documented.get(name, ("counter", ()))
        for bound in ("0.1", "+Inf") if name.endswith("_bucket") else (None,):
            values = {label: _LABEL_VALUES.get(label, "x") for label in labels}
            values |= {"le": bound} if bound else {}
            values |= {"job": "shop", "instance": "web-1:9764"}
            shown = ", ".join(f'{label}="{value}"' for label, value in values.items())
            yield f"{name}{{{shown}}}", "4x60" if kind == "gauge" else "0+60x60"


_LABEL_VALUES = {"code": "500", "method": "GET", "reason": "killed", "role": "worker"}


# ------------------------------------------------------------------------------------------------
# Manifests


def test_kustomization(tmp_path: Path) -> None:
    """Each is rendered, with this repository in the place of the one that it names."""
    shutil.copytree(KUBERNETES, tmp_path / "k8s")
    for number, block in enumerate(of_kind("yaml", "kustomization")):
        place = tmp_path / "k8s" / "overlays" / str(number)
        place.mkdir()
        text = re.sub(r"https://\S+//k8s/(\S+)\?ref=\S+", r"../../\1", block.text)
        (place / "kustomization.yaml").write_text(text, encoding="utf-8")
        assert all_problems(render(place), KUBERNETES_RELEASE) == [], block.name


def test_values_of_the_chart() -> None:
    """Helm takes them, and what it makes of them is sound."""
    for block in of_kind("yaml", "values"):
        found = render_chart(CHART, yaml.safe_load(block.text), "shop")
        assert all_problems(found, KUBERNETES_RELEASE) == [], block.name


def _places(deployment: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return where a part of a Deployment may belong."""
    template = deployment["spec"]["template"]
    yield template["spec"]["containers"][0]
    yield template["spec"]
    yield template
    yield template["metadata"].setdefault("annotations", {})


def test_parts_of_manifests() -> None:
    """Each part has places in a Deployment, where the schema accepts it."""
    manifests = render(BASE)
    for block in of_kind("yaml", "part of a manifest"):
        text = block.text
        if text.startswith(" "):  # with its indentation, and so with nothing around it
            text = f"      containers:\n      - name: x\n        image: x\n{text}"
        for key, value in yaml.safe_load(text).items():
            problems = []
            for number in range(4):
                deployment = copy.deepcopy(find(manifests, "Deployment"))
                list(_places(deployment))[number][key] = value
                problems.append(schema_problems([deployment], KUBERNETES_RELEASE))
            assert [] in problems, (block.name, problems)


# ------------------------------------------------------------------------------------------------
# Other texts


def test_findings() -> None:
    """Each line that ``check`` is said to print has the form in which it prints."""
    for block in of_kind("text", "findings"):
        for line in block.text.splitlines():
            if not line.startswith(" "):
                level, part, text = line.split(None, 2)
                assert level in {"ok", "warning", "error"}
                assert part in PARTS
                level = cast("Literal['ok', 'warning', 'error']", level)
                assert Finding(part, level, text).lines() == line


def test_unit(tmp_path: Path) -> None:
    """Every line of a unit is known to systemd."""
    program = shutil.which("systemd-analyze")
    for block in of_kind("ini", "unit"):
        assert all(re.fullmatch(r"(#.*|\[\w+\]|\w+=.+|)", one) for one in block.text.splitlines())
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", block.text, flags=re.MULTILINE)
        text = re.sub(r"^User=\w+", "User=root", text, flags=re.MULTILINE)
        (tmp_path / "shop.service").write_text(text, encoding="utf-8")
        if program:  # not in every container
            done = subprocess.run(
                [program, "verify", "--man=no", tmp_path / "shop.service"],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert "shop.service" not in done.stderr, done.stderr


# ------------------------------------------------------------------------------------------------
# Commands


def test_the_shell_parses_every_block_of_commands() -> None:
    """Also those that cannot be run here."""
    for block in BLOCKS:
        if block.language == "sh":
            done = subprocess.run(
                ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, (block.name, done.stderr)


@pytest.mark.parametrize("start", NOT_RUN)
def test_what_is_not_run(start: str, tmp_path: Path) -> None:
    """Of a command that is not run here, what it names is there and can be used."""
    shown = {
        command.text
        for block in BLOCKS
        if block.language == "sh"
        for command in commands(block.text)
        if re.match(start, command.text)
    }
    for command in shown:
        words = shlex.split(command)
        match words:
            case ["docker", "build", *options]:
                assert (ROOT / options[options.index("--file") + 1]).exists()
                assert "--tag" in options
            case ["docker", "run", *options, image]:
                assert "--rm" in options
                assert any(f"--tag {image} " in block.text for block in BLOCKS)
            case ["kubectl", "apply", "--kustomize", folder]:
                assert render(ROOT / folder)
            case ["kubectl", "get", *_]:
                assert "--output" in words
            case ["helm", "install", name, chart, *options]:
                values = options[options.index("--values") + 1]
                (block,) = [one for one in BLOCKS if one.text.startswith(f"# {values}\n")]
                assert render_chart(ROOT / chart, yaml.safe_load(block.text), name)
            case ["pip", "install", *requirements]:
                for each in requirements:
                    _check_requirement(each)
            case ["make", *arguments]:
                done = subprocess.run(
                    ["make", "--dry-run", *arguments],
                    cwd=ROOT,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, done.stderr
            case ["prometheus", config, *_]:
                path = ROOT / config.removeprefix("--config.file=")
                if not path.exists():  # a file that the page has written
                    path = tmp_path / path.name
                    (block,) = [b for b in BLOCKS if b.text.startswith(f"# {path.name}\nglobal:")]
                    path.write_text(block.text, encoding="utf-8")
                status, said = run_promtool("check", "config", "--syntax-only", path)
                assert status == 0, said
            case _:
                pytest.fail(f"nothing is checked of {command}")


def _check_requirement(text: str) -> None:
    """Check that pip is asked for this project and its extras, or for what tests use."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has it")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if text.startswith((".", "/")):
        path, _, extras = text.partition("[")
        assert path in {".", "../..", "/path/to/the/clone"}
        text = f"obskit-gunicorn[{extras}" if extras else "obskit-gunicorn"
    requirement = Requirement(text)
    if requirement.name == "obskit-gunicorn":
        assert requirement.extras <= set(project["project"]["optional-dependencies"]), text
        return
    groups = project["dependency-groups"].values()
    known = {Requirement(one).name for group in groups for one in group if isinstance(one, str)}
    assert requirement.name in known, text


def test_rewrites(tmp_path: Path) -> None:
    """A command that changes every file of a clone changes them as it says, and no other one."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for block in BLOCKS:
        for command in commands(block.text):
            if block.language == "sh" and command.kind == "rewrites":
                (address,) = re.findall(r"git grep -lF (\S+)", command.text)
                (tmp_path / "a.md").write_text(f"[x]({address}/blob/main/x)\n", encoding="utf-8")
                (tmp_path / "b.md").write_text("https://gitaexample.com/\n", encoding="utf-8")
                for action in (["init", "--quiet"], ["add", "."]):
                    subprocess.run([*git, *action], cwd=tmp_path, check=True)
                subprocess.run(
                    ["bash", "-o", "pipefail", "-euc", command.text], cwd=tmp_path, check=True
                )
                assert (tmp_path / "a.md").read_text() == "[x](https://HOST/PATH/blob/main/x)\n"
                assert (tmp_path / "b.md").read_text() == "https://gitaexample.com/\n"


def test_secret() -> None:
    """The Secret that a page makes is one, also without a cluster."""
    for block in BLOCKS:
        kinds = [command.kind for command in commands(block.text)]
        if block.language == "sh" and "secret" in kinds:
            script = "\n".join(one.text for one in commands(block.text) if one.kind == "secret")
            done = subprocess.run(
                ["bash", "-euc", f"{script} --dry-run=client --output yaml"],
                env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            secret = yaml.safe_load(done.stdout)
            assert schema_problems([secret], KUBERNETES_RELEASE) == []
            keys = re.findall(r"--from-(?:literal|file)=(\S+?)=", script)
            assert set(secret["data"]) == set(keys) > set()


def test_bash_is_there() -> None:
    """What parses commands is not skipped over."""
    assert find_program("bash", "bash")

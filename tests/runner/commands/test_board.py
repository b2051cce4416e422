"""`python -m haepo_jax.board`: what is read from folders, whole and damaged, and the page in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from haepo_jax.runner.commands import board
from haepo_jax.runner.plots import curves_figure, read_curve
from haepo_jax.runner.rendering.board_page import board_page, find
from haepo_jax.runner.run_dir import RunDir
from haepo_jax.statistics import bootstrap_interval

CHROMIUM = shutil.which("chromium")


def make_run(
    folder: Path, rows: int = 3, seeds: int = 2, rate: float = 0.1, ended: bool = True, **metrics: Any
) -> Path:
    """A run's folder by hand: seed s has the return row * 10 + s in every row."""
    folder.mkdir(parents=True)
    settings = {"env": "CartPole-v1", "algo": {"name": "ppo", "learning_rate": rate, "hidden_sizes": [8, 8]}, "seed": 0}
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "run_dir": str(folder), "wandb": False}))
    with (folder / "metrics.jsonl").open("w") as file:
        for row in range(rows):
            values = {"eval_return": [10.0 * row + seed for seed in range(seeds)], "ess": [0.5] * seeds, **metrics}
            means = {name: float(np.mean(x)) for name, x in values.items()}
            line = {"row": row, "update": row, "env_steps": 1000 * (row + 1), "wall_seconds": 0.5 * row, **means}
            file.write(json.dumps({**line, "seeds": {"update": [row] * seeds, **values}}) + "\n")
    if ended:
        (folder / "summary.json").write_text(json.dumps({"final_return_per_seed": [7.0, 9.0], "diverged": []}))
    return folder


def make_sweep(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "trials.csv").write_text(
        "index,trial,state,return,algo.learning_rate,return_per_seed,curve_steps,curve_return_per_seed\n"
        '0,0,complete,1.5,0.01,"[1.0, 2.0]","[50.0, 100.0]","[[0.0, 1.0], [1.0, null]]"\n'
        '1,1,running,nan,0.001,"[null, null]","[50.0, 100.0]","[[null, null], [null, null]]"\n'
    )
    trial = {"env": "haepo/bandit", "algo": {"name": "haepo", "learning_rate": 1.0}}
    (folder / "sweep.json").write_text(json.dumps({"trial": trial}))
    return folder


def read(*folders: Path, out: Path) -> list[dict[str, Any]]:
    """The runs on a page, by the page's own data."""
    page, count, unreadable = board_page(list(folders), out)
    assert unreadable == []
    found = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    runs = json.loads(found[0])["runs"]
    assert len(found) == 1 and len(runs) == count
    return runs


def test_runs_and_sweeps_are_found_wherever_they_lie(tmp_path: Path) -> None:
    make_run(tmp_path / "b" / "run"), make_run(tmp_path / "a" / "b" / "c")
    make_run(tmp_path / "b" / "run" / "checkpoints" / "no run")
    make_sweep(tmp_path / "sweep"), (tmp_path / "empty").mkdir()
    assert [str(path.relative_to(tmp_path)) for path in find(tmp_path)] == ["a/b/c", "b/run", "sweep"]
    assert list(find(tmp_path / "sweep")) == [tmp_path / "sweep"]


def test_a_run_is_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "one", loss=[1 / 3, 1.0])
    (run / "episode.gif").touch()
    other = make_run(tmp_path / "runs" / "über #1?", seeds=1, ended=False)
    first, second = read(run, other, out=tmp_path / "pages" / "board.html")
    assert (first["name"], first["status"], first["axis"]) == ("one", "ended", "env_steps")
    assert first["settings"] == {
        "env": "CartPole-v1", "algo": "ppo", "algo.learning_rate": 0.1, "algo.hidden_sizes": "[8, 8]", "seed": 0,
    }  # fmt: skip
    assert first["final"] == [8, 7, 9] and first["steps"] == [1000, 2000, 3000]
    assert first["curves"]["eval_return"] == [[0.5, 10.5, 20.5], [0, 10, 20], [1, 11, 21]]
    assert first["curves"]["loss"] == [[0.666667] * 3]
    assert first["curves"]["wall_seconds"] == [[0, 0.5, 1]]
    assert (second["name"], second["status"], second["final"]) == ("über #1?", "not ended", [20, None, None])
    assert second["curves"]["eval_return"] == [[0, 10, 20]]
    for run in (first, second):
        for _, link in run["links"]:
            assert not re.search("[#?:]", link) and (tmp_path / "pages" / urllib.parse.unquote(link)).resolve().exists()
    assert [text for text, _ in first["links"]] == ["metrics", "summary", "episode", "config", "folder"]


def test_a_sweep_is_read_trial_by_trial(tmp_path: Path) -> None:
    best, running = read(make_sweep(tmp_path / "sweep"), out=tmp_path / "board.html")
    assert (best["name"], best["status"], best["final"]) == ("sweep trial 0", "complete", [1.5, 1, 2])
    assert best["settings"] == {"env": "haepo/bandit", "algo": "haepo", "algo.learning_rate": 0.01}
    assert best["steps"] == [50, 100] and best["curves"] == {"episode_return": [[0.5, 1], [0, None], [1, None]]}
    assert running["final"] == [] and running["settings"]["algo.learning_rate"] == 0.001


def test_the_run_of_a_language_model_is_read(tmp_path: Path) -> None:
    """Which has steps, one value per row, and texts."""
    run = tmp_path / "run"
    run.mkdir()
    rows = [{"step": step, "reward": 0.5 * step, "loss": 1.0} for step in range(3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "config.yaml").write_text("model: m\nlora_rank: null\n")
    lines = [{"step": i // 8, "prompt": "1 + 1 =", "completion": f' "é\n{i}', "reward": 0.25} for i in range(40)]
    (run / "completions.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    (run / "eval.jsonl").write_text(
        json.dumps({"step": 3, "prompt": "2 + 2 =", "completion": " 4", "reward": 1.0}) + "\n{"
    )
    (found,) = read(run, out=tmp_path / "board.html")
    assert (found["axis"], found["steps"], found["final"]) == ("step", [0, 1, 2], [1, None, None])
    assert found["curves"] == {"reward": [[0, 0.5, 1]], "loss": [[1, 1, 1]]}
    assert len(found["completions"]) == 17
    assert found["completions"][-2] == ["completions", 4, "1 + 1 =", ' "é\n39', 0.25]
    assert found["completions"][-1] == ["eval", 3, "2 + 2 =", " 4", 1]
    assert [text for text, _ in found["links"]] == ["metrics", "config", "completions", "eval", "folder"]
    assert found["settings"] == {"model": "m", "lora_rank": "null"}


def test_the_statistics_are_those_of_the_curve(tmp_path: Path) -> None:
    returns = np.random.default_rng(0).normal(size=(3, 6))
    run = make_run(tmp_path / "run", seeds=6)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line, values in zip(lines, returns, strict=True):
        line["seeds"]["eval_return"] = values.tolist()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (found,) = read(run, out=tmp_path / "board.html")
    axes = curves_figure([read_curve(RunDir(run), label="x")]).axes[0]
    np.testing.assert_allclose(found["curves"]["eval_return"][0], axes.lines[0].get_ydata(), rtol=1e-5)
    np.testing.assert_allclose(found["curves"]["eval_return"][1:], bootstrap_interval(returns), rtol=1e-5)


def test_what_cannot_be_read_is_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    runs = {name: make_run(tmp_path / name) for name in ("good", "line", "row", "config", "summary")}
    for name, text in [("good", '{"row": 5, "env_ret'), ("line", "{oh\n"), ("row", "[1, 2]\n")]:
        with (runs[name] / "metrics.jsonl").open("a") as file:
            file.write(text)  # of the first the end is still being written
    (runs["config"] / "config.yaml").write_text("{ [")
    (runs["summary"] / "summary.json").write_text('{"final_return_per_seed": "none"}')
    sweep = make_sweep(tmp_path / "sweep")
    (sweep / "trials.csv").write_text('index,curve_steps,curve_return_per_seed\n0,"[1","{}"\n')
    _, count, unreadable = board_page([*runs.values(), sweep], tmp_path / "board.html")
    assert count == 1 and len(unreadable) == 5
    for folder, text in zip([*list(runs.values())[1:], sweep], unreadable, strict=True):
        assert str(folder) in text and "\n" not in text
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").touch()
    (tmp_path / "empty" / "config.yaml").write_text("env: CartPole-v1")
    assert read(tmp_path / "empty", out=tmp_path / "x.html")[0]["steps"] == []


def test_a_page_holds_all_that_it_shows_and_no_tag_of_its_data(tmp_path: Path) -> None:
    name = "</script><script>alert(1)<!--"
    run = make_run(tmp_path / name)
    page, *_ = board_page([run], tmp_path / "board.html")
    assert page.count("<script") == 2 and "alert(1)" in page and "<!--" not in page.partition('id="data"')[2]
    code = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|src=\"|href=\"|@import|url\(|\bimport\b|fetch\(|XMLHttpRequest|innerHTML", code)
    assert "default-src 'none'" in page


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "a=1"), make_run(tmp_path / "runs" / "b")
    (tmp_path / "nothing").mkdir()
    assert board.main(["runs"]) == 0 and "wrote board.html: 2 runs" in capsys.readouterr().out
    # A folder is known by being one, and counted once.
    assert board.main(["runs/a=1", "runs/b", "runs", "out=two.html"]) == 0 and "2 runs" in capsys.readouterr().out
    assert board.main(["run_dir=runs/b,runs"]) == 0 and "2 runs" in capsys.readouterr().out
    assert board.main(["--help"]) == 0 and "out" in capsys.readouterr().out
    for arguments, message in [
        ([], "no folder is named"),
        (["nowhere"], "'nowhere' is not a directory"),
        (["runs/b/config.yaml"], "is not a directory"),
        (["x" * 5000], "is not a directory"),
        (["nothing"], "'nothing' holds no run"),
        (["runs", "out=page.pdf"], "must end in .html"),
        (["runs", "out=no/page.html"], "there is no directory 'no'"),
        (["runs", "out=page.html", "title=x"], "unknown key 'title'"),
        (["runs", "--open"], "unknown option '--open'"),
    ]:
        assert board.main(arguments) == 2, arguments
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1 and not captured.out
    (tmp_path / "dir.html").mkdir()
    assert board.main(["runs", "out=dir.html"]) == 2 and "cannot be written" in capsys.readouterr().err


def browse(page: Path, script: str, tmp_path: Path) -> tuple[Any, str]:
    """Opens a page in Chromium and runs a script in it: what the script returns, and what was logged."""
    tell = "document.body.append(Object.assign(document.createElement('pre'), {id: 'found', textContent: JSON.stringify(run())}));"
    probe = f"<script>const run = () => {{ {script} }}; {tell}</script></body>"
    opened = page.with_name("opened.html")
    opened.write_text(page.read_text().replace("</body>", probe))
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,1000", "--virtual-time-budget=2000", "--dump-dom",
    ]  # fmt: skip
    ended = subprocess.run([*command, opened.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="found">(.*?)</pre>', ended.stdout, re.DOTALL)
    assert found is not None, ended.stderr
    console = "\n".join(line for line in ended.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(html.unescape(found[1])), console


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_it_draws_filters_and_tells(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>"
    runs = tmp_path / "runs"
    make_run(runs / name, rate=0.5)
    run = make_run(runs / "two")
    make_sweep(runs / "sweep")
    (run / "completions.jsonl").write_text(
        json.dumps({"env_steps": 5, "prompt": name, "completion": "a\n b", "reward": 0.123456}) + "\n"
    )
    page = tmp_path / "board.html"
    page.write_text(board_page([path for path in find(runs)], page)[0])
    found, console = browse(
        page,
        """
        const all = selector => [...document.querySelectorAll(selector)], text = selector => all(selector).map(x => x.textContent);
        const set = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event("input")); };
        const found = {curves: all("#curves path.curve").length, bands: all("path.band").length};
        found.note = text("#legend .note"), found.legend = text("#legend span:not(.note)"), found.labels = text("#curves text.label");
        found.ticks = text("#curves text");
        found.head = text("#head th"), found.rows = all("#body tr").length;
        const box = $("curves").getBoundingClientRect();
        const end = all("#curves path.curve")[0].getPointAtLength(1e6);
        $("figure").dispatchEvent(new MouseEvent("mousemove", {clientX: box.left + end.x - 3, clientY: box.top + end.y, bubbles: true}));
        const places = new Map(all("#curves text").map(x => [x.textContent, [+x.getAttribute("x"), +x.getAttribute("y")]]));
        found.end = [end.x, end.y], found.x = places.get("3K")[0], found.y = [places.get("15")[1], places.get("20")[1]];
        found.tip = $("tip").hidden ? "" : $("tip").textContent, found.near = all("path.near").length;
        found.texts = text("#texts td");
        set("filter", "rate=0.5 ppo"); found.said = $("said").hidden;
        found.filtered = text("#body td:nth-child(2)"), found.count = $("count").textContent;
        set("filter", ""); set("metric", "ess"); found.ess = text("#curves text.label")[1];
        set("colour", "algo.learning_rate"); found.coloured = text("#legend span:not(.note)");
        set("metric", "eval_return"); all("th").find(x => x.textContent === "algo.learning_rate").click();
        found.sorted = text("#body td:nth-child(2)");
        $("toggle").click(); found.none = all("#curves path.curve").length;
        $("toggle").click();
        found.overflow = document.documentElement.scrollWidth > innerWidth;
        return found;
        """,
        tmp_path,
    )
    assert "error" not in console.lower() and "refused" not in console.lower() and "alert" not in console, console
    assert console.count("CONSOLE") == 0
    assert (found["curves"], found["bands"], found["rows"]) == (2, 2, 4)
    assert found["legend"] == [name, "two"] and found["note"] == ["2 without this metric"]
    assert found["labels"] == ["environment steps per seed", "return (evaluation)"]
    assert {"0", "1K", "2K", "3K", "5", "10", "15", "20"} <= set(found["ticks"])
    assert found["head"][:3] == ["", "run", "final return"] and found["head"][-3:] == ["status", "steps", "files"]
    assert "algo.learning_rate" in found["head"][3:-3]
    assert found["tip"].splitlines()[:3] == [
        name, "environment steps per seed: 3,000", "return (evaluation): 20.5 (20 to 21)",
    ]  # fmt: skip
    assert found["near"] == 1
    # The curve ends where the ticks say: at 3,000 steps, and a tenth of the way from 20 to 25.
    fifteen, twenty = found["y"]
    assert found["end"] == pytest.approx([found["x"], twenty - 4 + (twenty - fifteen) / 10], abs=1)
    assert found["texts"] == ["two", "completions", "5", name, "a\n b", "0.1235"] and found["said"]
    assert found["filtered"] == [name] and found["count"] == "1 of 4 runs shown"
    assert found["ess"] == "effective sample size, share of group"
    assert found["coloured"] == ["algo.learning_rate = 0.1", "algo.learning_rate = 0.5"]
    assert found["sorted"] == ["sweep trial 1", "sweep trial 0", "two", name]
    assert found["none"] == 0 and not found["overflow"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_two_hundred_runs_open_quickly(tmp_path: Path) -> None:
    names = {f"metric_{index}": [1.0 * index, 2.0] for index in range(20)}
    runs = [make_run(tmp_path / "runs" / f"{i:03}", rows=50, rate=i / 200, **names) for i in range(200)]
    page = tmp_path / "board.html"
    page.write_text(board_page(runs, page)[0])
    assert page.stat().st_size < 8_000_000
    script = "document.body.offsetHeight; return [document.querySelectorAll('path.curve').length, performance.now()];"
    (curves, milliseconds), console = browse(page, script, tmp_path)
    assert curves == 200 and "rror" not in console
    assert milliseconds < 10_000, "a second on an idle machine"

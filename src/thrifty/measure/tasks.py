"""Tasks of lm-eval on a loaded model: multiple choice, perplexity and generation, alone or paired with the original.

lm-eval (the language model evaluation harness of EleutherAI) builds the prompts and scores the answers. It is an extra, imported only when
tasks are asked for. The model that answers is the one that is handed in, so packed weights stay packed. No chat template is applied.
"""

from __future__ import annotations

import difflib
import logging
import random
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from thrifty.base import events
from thrifty.base.errors import InputError, RunError, ThriftyError
from thrifty.measure.harness import Collected, answering, quiet, reason
from thrifty.measure.task_files import TaskFile, is_path, neighbours, read_files
from thrifty.measure.task_scores import Score, read_scores

BATCH = 8
INSTALL = "pip install thrifty[tasks]"
NEAR = 3
_LINES = re.compile(r"^[ \t-]*[\"']?(?:task|group|tag)[\"']?:(.*)$|^[ \t]*-[ \t]+([^:\n]+)$", re.MULTILINE)
_WORD = re.compile(r"[\w.:+()-]+")


@dataclass(frozen=True)
class Tasks:
    """Tasks whose prompts have been built once, so that a mistake in them shows before a model is loaded.

    loaded: tasks and groups as lm-eval keeps them. limit: documents of each task, from the first on; all of them if None.
    """

    loaded: Mapping[str, Any]
    seed: int
    limit: int | None

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, without the groups."""
        return tuple(self.loaded["tasks"])


def open_tasks(words: Sequence[str | Path], *, seed: int = 0, samples: int | None = None) -> Tasks:
    """Find the tasks, load their data and build every prompt.

    words: names of tasks, groups or tags that lm-eval knows, YAML task files, or folders of these. seed: of the examples in few-shot
    prompts and of answers that are drawn. samples: documents of each task, all of them if None.
    Raises InputError without lm-eval, for an unknown name (with the nearest ones) and for a task that cannot be run (with its file),
    RunError when the data of a task cannot be downloaded.
    """
    if samples is not None and samples < 1:
        raise InputError(f"samples must be at least 1, got {samples}")
    require()
    places = {str(word): _files(str(word)) for word in words}
    wanted = [(file.name, str(file.path)) for files in places.values() for file in files]
    wanted += [(word, "") for word, files in places.items() if not files]
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    said = Collected()
    with quiet(logging.ERROR, said), seeded(seed), _index(places) as index, events.task("tasks: data", len(wanted)) as advance:
        for done, (name, where) in enumerate(wanted, 1):
            found = _load(index, name, where, said)
            for task in found["tasks"].values():
                _build(task, where, seed, samples)
            for part in loaded:
                loaded[part] |= found.get(part) or {}
            advance(done, name)
    return Tasks(loaded, seed, samples)


def run_tasks(tasks: Tasks, model: nn.Module, tokenizer: Any, *, batch: int = BATCH) -> tuple[Score, ...]:
    """What a model scores on the tasks, with the value of every document.

    model: a causal language model in evaluation mode. tokenizer: its own. batch: prompts at a time; it moves the last digits of a score.
    Raises InputError for answers that the model cannot score or write in its context, RunError when a task fails while running.
    """
    from lm_eval.evaluator import evaluate

    collected = Collected()
    with quiet(logging.WARNING, collected), seeded(tasks.seed):
        harness = answering(model, tokenizer, batch)
        collected.clear()
        for name, task in tasks.loaded["tasks"].items():
            _check_length(name, task, harness)
            task.set_fewshot_seed(seed=tasks.seed)
        try:
            found = evaluate(harness, dict(tasks.loaded), limit=tasks.limit, bootstrap_iters=0)
        except (ThriftyError, MemoryError):
            raise
        except Exception as error:  # a task may hold any code, and lm-eval lets everything through
            raise RunError(f"{_listed(tasks.names)} failed while running: {reason(error)}") from error
    collected.warn()
    return read_scores(tasks.loaded, found)


def require() -> None:
    """Import lm-eval. Raises InputError with the command that installs it."""
    try:
        import lm_eval.evaluator
        import lm_eval.models.huggingface
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        missing = (error.name or "").partition(".")[0] == "lm_eval"
        why = "are run by lm-eval, which is not installed" if missing else f"need lm-eval, which cannot be imported ({reason(error)})"
        raise InputError(f"tasks {why}; run: {INSTALL}") from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The generators that tasks draw from start at `seed`; afterwards they are as they were."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


# -- which tasks -------------------------------------------------------------------------------------------------------


def _files(word: str) -> list[TaskFile]:
    """The task files that a word means; none for a name that lm-eval may know."""
    if not word:
        raise InputError("the name of a task is empty; give the name of one, or the path of a YAML task file")
    if is_path(word) or (Path(word).exists() and word not in _shipped_names()):
        return read_files(word)
    if word in _shipped_text():
        return []
    raise _unknown(word)


def _unknown(word: str) -> InputError:
    near = difflib.get_close_matches(word, sorted(_shipped_names()), n=NEAR, cutoff=0.6)
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    if Path(word).exists():
        hint = f" (for what is here under that name, write ./{word})"
    return InputError(f"lm-eval has no task {word!r}{hint}; give the name of one, or the path of a YAML task file")


@cache
def _shipped_text() -> str:
    """The text of all of lm-eval's task files. Every name stands in it; parsing the 14,000 files takes twenty times as long."""
    places = find_spec("lm_eval").submodule_search_locations  # type: ignore[union-attr]
    files = (path for place in places or () for path in (Path(place) / "tasks").rglob("*yaml") if path.is_file())
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(files))


@cache
def _shipped_names() -> frozenset[str]:
    """What is written where names of tasks, groups and tags stand; a few words are none."""
    return frozenset(word for match in _LINES.finditer(_shipped_text()) for word in _WORD.findall(match[1] or match[2] or ""))


@contextmanager
def _index(places: Mapping[str, Sequence[TaskFile]]) -> Iterator[Any]:
    """lm-eval's index of tasks: the local ones, and its own where one of these is named."""
    from lm_eval.tasks import TaskManager

    local: dict[str, TaskFile] = {}
    for file in (file for files in places.values() for file in files):
        if local.setdefault(file.name, file).path != file.path:
            raise InputError(f"{local[file.name].path} and {file.path} both name a task {file.name!r}; rename one of them")
    for group in [file for file in local.values() if file.is_group]:
        for file in neighbours(group):
            local.setdefault(file.name, file)
    known = {*local, *(tag for file in local.values() for tag in file.tags())}
    shipped = not all(places.values()) or any(member not in known for file in local.values() for member in file.members())
    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(local.values()):
            (Path(folder) / f"{number}.yaml").write_text(file.wrapper(), encoding="utf-8")
        with events.task("tasks: index of lm-eval") if shipped else nullcontext():
            index = TaskManager(include_path=folder, include_defaults=shipped)
        yield index


# -- whether they can be run -------------------------------------------------------------------------------------------


def _load(index: Any, name: str, where: str, said: Collected) -> Mapping[str, Any]:
    """A task or the tasks of a group, with their data."""
    if name not in index.all_tasks:
        raise (
            InputError(f"{where} cannot be used as a task file; compare it with lm-eval's guide to new tasks") if where else _unknown(name)
        )
    try:
        found = index.load([name])
    except Exception as error:  # a task file may hold anything, down to Python of its own
        if _unreachable(error):
            raise RunError(
                f"the data of task {where or name} cannot be downloaded: {reason(error)}; connect to the network, or give a task file "
                "with data on this machine"
            ) from error
        raise InputError(f"task {where or name} cannot be used: {said.error() or reason(error)}") from error
    if not found["tasks"]:
        raise InputError(f"task {where or name} is a group without a task in it; list some under `task`")
    return found


def _unreachable(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is about the network."""
    from huggingface_hub.errors import HfHubHTTPError

    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError | HfHubHTTPError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _build(task: Any, where: str, seed: int, limit: int | None) -> None:
    """Refuse what cannot be run, and build every prompt, so that a document which does not fit shows now."""
    name = where or task.task_name
    if getattr(task, "MULTIMODAL", False):
        raise InputError(f"task {name} shows images or plays sound; only tasks of text are run here")
    if getattr(task, "UNSAFE_CODE", False):
        raise InputError(f"task {name} runs code that the model writes, which is not done here; choose another task")
    if not callable(task.get_config("process_results")):
        missing = [metric for metric, function in getattr(task, "_metric_fn_list", {}).items() if function is None]
        if missing:
            raise InputError(f"task {name} asks for the metric {missing[0]!r}, which lm-eval does not have")
    task.set_fewshot_seed(seed=seed)
    try:
        task.build_all_requests(limit=limit)
    except Exception as error:  # templates and functions of the task file
        raise InputError(f"task {name} cannot make a prompt of its data: {reason(error)}") from error
    for instance in task.instances:
        if instance.request_type == "loglikelihood" and not instance.args[1]:
            raise InputError(f"task {name}: an answer in document {instance.doc_id + 1} is empty; there is nothing to score")
    if (
        where
        and task.OUTPUT_TYPE == "multiple_choice"
        and not getattr(task, "multiple_input", 0)
        and not callable(task.get_config("process_results"))
    ):
        _check_choices(task, where)


def _check_choices(task: Any, where: str) -> None:
    """Every right answer of a task file must be one of the choices: lm-eval would count all of them wrong."""
    for number, document in {instance.doc_id: instance.doc for instance in task.instances}.items():
        choices, right = task.doc_to_choice(document), task.doc_to_target(document)
        for answer in right if isinstance(right, list) else [right]:
            if not (0 <= answer < len(choices) if isinstance(answer, int) else answer in choices):
                raise InputError(
                    f"task {where}: the answer of document {number + 1} is {answer!r}, which is none of its {len(choices)} choices "
                    "(counted from 0)"
                )


def _check_length(name: str, task: Any, harness: Any) -> None:
    for instance in task.instances:
        if instance.request_type == "generate_until":
            tokens = instance.args[1].get("max_gen_toks", harness.max_gen_toks)
            if isinstance(tokens, int) and tokens >= harness.max_length:
                raise InputError(
                    f"task {name} lets the model write {tokens} tokens, and its context holds {harness.max_length}; "
                    "set a smaller max_gen_toks under generation_kwargs in a task file"
                )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NEAR])
    return f"task {shown}" if len(names) == 1 else f"tasks {shown}{' and others' if len(names) > NEAR else ''}"

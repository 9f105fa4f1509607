"""Tasks of lm-eval on the model inside the package, against the same figures computed directly with transformers."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import tiny
from thrifty import api
from thrifty.base import events
from thrifty.base.errors import InputError, RunError
from thrifty.cli.main import main
from thrifty.data import default_model, embedded_text
from thrifty.data.tokenizer import load_tokenizer
from thrifty.measure.task_scores import Score, summarise_tasks
from thrifty.measure.tasks import open_tasks, run_tasks
from thrifty.models import open_model
from thrifty.runtime.linear import PackedLinear
from thrifty.runtime.load import load

CONTEXT = 512
CHOICE = {
    "task": "next_word",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/words.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "code",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "brier_score"}],
}
TEXT = {
    "task": "code_text",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/texts.jsonl"}},
    "test_split": "test",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "text",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
}
WRITE = {
    "task": "write",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/lines.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "code",
    "doc_to_target": "line",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match"}],
}


class Direct:
    """The model inside the package as transformers alone loads and runs it, one prompt at a time."""

    def __init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(default_model())
        self.model = AutoModelForCausalLM.from_pretrained(default_model(), dtype=torch.float32).eval()

    def log_probabilities(self, tokens: Sequence[int]) -> torch.Tensor:
        """[length, vocabulary]"""
        with torch.inference_mode():
            return self.model(torch.tensor([list(tokens)])).logits[0].double().log_softmax(-1)

    def score(self, context: str, answer: str) -> float:
        """ln p(answer | context) in nats."""
        before = self.tokenizer(context)["input_ids"]
        whole = self.tokenizer(context + answer)["input_ids"]
        found = self.log_probabilities(whole)
        return sum(float(found[place - 1, whole[place]]) for place in range(len(before), len(whole)))

    def text(self, text: str) -> float:
        """ln p(text), in pieces of the context's length, each token once, with as much context as fits before its piece's end; nats."""
        tokens = [self.tokenizer.eos_token_id, *self.tokenizer(text)["input_ids"]]
        total = 0.0
        for start in range(0, len(tokens) - 1, CONTEXT):
            end = min(start + CONTEXT, len(tokens) - 1)
            first = max(0, end - CONTEXT)
            found = self.log_probabilities(tokens[first:end])
            total += sum(float(found[place - first, tokens[place + 1]]) for place in range(start, end))
        return total

    def line(self, context: str, tokens: int) -> str:
        """The greedy continuation up to the end of the line."""
        ids = list(self.tokenizer(context)["input_ids"])
        start = len(ids)
        for _ in range(tokens):
            ids.append(int(self.log_probabilities(ids)[-1].argmax()))
        return self.tokenizer.decode(ids[start:], skip_special_tokens=True).split("\n")[0]


@pytest.fixture(scope="module")
def direct() -> Direct:
    return Direct()


@pytest.fixture(scope="module")
def documents() -> dict[str, list[dict[str, Any]]]:
    """Prompts, texts and lines out of the held-out Python inside the package."""
    generator = random.Random(0)
    lines = [line for line in embedded_text("evaluation").splitlines() if 25 < len(line) < 60 and len(line.split()) > 2]
    generator.shuffle(lines)
    words = []
    for line, *others in zip(lines[:12], lines[12:24], lines[24:36], strict=True):
        start, last = line.rsplit(" ", 1)
        choices = [" " + last, *(" " + other.rsplit(" ", 1)[1] for other in others)]
        answer = generator.randrange(3)
        choices[0], choices[answer] = choices[answer], choices[0]
        words.append({"code": start, "choices": choices, "answer": answer})
    whole = embedded_text("evaluation")
    texts = [{"text": whole[start : start + length]} for start, length in ((0, 300), (4000, 450), (9000, 2600))]
    return {"words": words, "texts": texts, "lines": [{"code": line[:20], "line": ""} for line in lines[40:46]]}


@pytest.fixture
def folder(tmp_path: Path, documents: dict[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three task files and their data; nothing is kept in the user's cache of data sets."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    place = tmp_path / "my tasks"
    (place / "data").mkdir(parents=True)
    for name, rows in documents.items():
        write_rows(place / "data" / f"{name}.jsonl", rows)
    for settings in (CHOICE, TEXT, WRITE):
        write(place / f"{settings['task']}.yaml", settings)
    return place


def write(path: Path, settings: dict[str, Any], **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**settings, **changes}))
    return path


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def model() -> Any:
    return load(default_model(), dtype=torch.float32)


def scores(model: Any, *words: Path, **settings: Any) -> dict[str, Score]:
    found = run_tasks(open_tasks(words, **settings), model, load_tokenizer(default_model()), batch=4)
    return {score.name: score for score in found}


# -- figures -----------------------------------------------------------------------------------------------------------


def test_multiple_choice_is_what_transformers_alone_gives(folder: Path, model: Any, direct: Direct, documents: Any) -> None:
    found = scores(model, folder / "next_word.yaml")
    right, right_by_length = [], []
    for document in documents["words"]:
        likely = [direct.score(document["code"], choice) for choice in document["choices"]]
        by_length = [value / len(choice) for value, choice in zip(likely, document["choices"], strict=True)]
        right.append(float(likely.index(max(likely)) == document["answer"]))
        right_by_length.append(float(by_length.index(max(by_length)) == document["answer"]))
    assert 0 < sum(right) < len(right)
    assert found["next_word/acc"].sums.tolist() == right
    assert found["next_word/acc"].value == pytest.approx(sum(right) / len(right))
    assert found["next_word/acc_norm"].sums.tolist() == right_by_length
    assert found["next_word/brier_score"].sums is None


def test_perplexity_is_what_transformers_alone_gives(folder: Path, model: Any, direct: Direct, documents: Any) -> None:
    found = scores(model, folder / "code_text.yaml")
    texts = [row["text"] for row in documents["texts"]]
    assert max(len(direct.tokenizer(text)["input_ids"]) for text in texts) > CONTEXT
    total = sum(direct.text(text) for text in texts)
    count = sum(len(text.encode()) for text in texts)
    assert found["code_text/bits_per_byte"].value == pytest.approx(-total / count / log(2), rel=1e-4)
    words = sum(len(text.split(" ")) for text in [" ".join(text.split()) for text in texts])
    spread = found["code_text/word_perplexity"]
    assert spread.value == pytest.approx(exp(-total / float(spread.counts.sum())), rel=1e-3)
    assert float(spread.counts.sum()) == pytest.approx(
        words, abs=2 * len(texts)
    )  # lm-eval also counts what is before and after white space
    assert [-value for value in spread.sums.tolist()] == pytest.approx([direct.text(text) for text in texts], rel=1e-4)


def test_generation_is_what_transformers_alone_gives(folder: Path, model: Any, direct: Direct, documents: Any) -> None:
    lines = [
        {"code": row["code"], "line": direct.line(row["code"], 8) + "!" * (number % 2)} for number, row in enumerate(documents["lines"])
    ]
    write_rows(folder / "data" / "lines.jsonl", lines)
    assert scores(model, folder / "write.yaml")["write/exact_match"].sums.tolist() == [1.0, 0.0] * 3


def test_examples_in_prompts_are_drawn_with_the_seed(folder: Path, model: Any) -> None:
    file = write(folder / "shots.yaml", CHOICE, num_fewshot=2, fewshot_split="test", task="shots")
    drawn, again, other = (scores(model, file, seed=seed, samples=4)["shots/acc"] for seed in (1, 1, 2))
    assert drawn.documents == again.documents and len(drawn.documents) == 4
    assert not set(drawn.documents) & set(other.documents)


def test_generators_of_the_caller_are_left_alone(folder: Path, model: Any) -> None:
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(3), random.Random(5).random()
    torch.manual_seed(5)
    scores(model, folder / "next_word.yaml", samples=2)
    assert torch.equal(torch.rand(3), expected[0]) and random.random() == expected[1]


# -- pairs -------------------------------------------------------------------------------------------------------------


def score(values: Sequence[float], metric: str = "acc", **settings: Any) -> Score:
    sums = torch.tensor(values, dtype=torch.float64)
    documents = tuple(map(str, range(len(values))))
    return Score("task", metric, float(sums.mean()), documents, sums, torch.ones_like(sums), **settings)


def test_differences_are_paired() -> None:
    generator = random.Random(0)
    before = [float(generator.random() < 0.6) for _ in range(200)]
    after = [value if generator.random() < 0.95 else 1 - value for value in before]
    found = summarise_tasks([score(after)], [score(before)])
    moved = torch.tensor(after) - torch.tensor(before)
    (row,), (difference,) = found["tasks"], found["quality"]
    assert row["right_to_wrong"] == int((moved == -1).sum()) > 0
    assert row["wrong_to_right"] == int((moved == 1).sum()) > 0
    assert difference["metric"] == "task/acc"
    assert difference["difference"] == pytest.approx(difference["after"] - difference["before"])
    half = 1.972 * float(moved.std()) / len(after) ** 0.5  # Student's t with 199 degrees of freedom
    assert difference["high"] - difference["low"] == pytest.approx(2 * half, rel=0.15)
    assert row["high"] - row["low"] > 1.5 * (difference["high"] - difference["low"])


def test_alike_documents_have_no_interval() -> None:
    same = score([1.0, 0.0, 1.0])
    (difference,) = summarise_tasks([same], [same])["quality"]
    assert (difference["difference"], difference["low"], difference["high"]) == (0.0, None, None)


def test_other_prompts_are_not_paired() -> None:
    other = Score("task", "acc", 0.5, ("a", "b"), torch.ones(2), torch.ones(2))
    with pytest.raises(RunError, match="different prompts"):
        summarise_tasks([score([1.0, 0.0])], [other])


def test_a_packed_result_stays_packed_and_is_compared(folder: Path, tmp_path: Path) -> None:
    api.compress(recipe="rtn: {bits: 3, group_size: 32}", out=tmp_path / "small", samples=2, tokens=32)
    packed = load(tmp_path / "small", dtype=torch.float32)
    layers = [module for module in packed.modules() if isinstance(module, PackedLinear)]
    calls: list[int] = []
    for layer in layers:
        layer.register_forward_hook(lambda *_: calls.append(1))
    alone = scores(packed, folder / "next_word.yaml", folder / "code_text.yaml")
    assert len(calls) >= len(layers)
    assert len(layers) == len(open_model(default_model()).anatomy.linears)

    found = api.evaluate(
        tmp_path / "small", against=default_model(), tasks=[str(folder / "next_word.yaml"), str(folder / "code_text.yaml")]
    )
    values = {f"{row['task']}/{row['metric']}": row["value"] for row in found["tasks"]}
    assert values == {name: pytest.approx(one.value, rel=1e-5) for name, one in alone.items()}
    original = api.evaluate(tasks=str(folder))
    before = {f"{row['task']}/{row['metric']}": row["value"] for row in original["tasks"]}
    assert {"write/exact_match", *values} == before.keys() and "quality" not in original
    for row in found["quality"]:
        assert row["before"] == pytest.approx(before[row["metric"]]) and row["after"] == pytest.approx(values[row["metric"]])
    spread = next(row for row in found["quality"] if row["metric"] == "code_text/bits_per_byte")
    assert spread["difference"] > 0 and spread["low"] < spread["difference"] < spread["high"]


# -- which tasks -------------------------------------------------------------------------------------------------------


def test_a_group_pools_its_tasks(folder: Path, model: Any) -> None:
    write(folder / "half.yaml", {"include": "next_word.yaml"}, task="half", dataset_kwargs={"data_files": {"test": "data/words.jsonl"}})
    group = {"group": "both", "task": ["next_word", "half"], "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}
    found = scores(model, write(folder / "both.yaml", group))
    assert len(found["both/acc"].documents) == 24
    assert found["both/acc"].value == found["next_word/acc"].value == pytest.approx(float(found["both/acc"].sums.mean()))


def test_functions_and_templates_beside_a_file_are_found(folder: Path, model: Any) -> None:
    (folder / "shape.py").write_text("def prompt(document):\n    return document['code']\n")
    (folder / "template.yaml").write_text((folder / "next_word.yaml").read_text().replace("task: next_word", ""))
    (folder / "mine.yaml").write_text("include: template.yaml\ntask: mine\ndoc_to_text: !function shape.prompt\n")
    found = scores(model, folder / "mine.yaml", folder / "next_word.yaml")
    assert found["mine/acc"].documents == found["next_word/acc"].documents
    assert found["mine/acc"].value == found["next_word/acc"].value


def test_progress_and_warnings_are_events(folder: Path, model: Any, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in (folder / "data" / "words.jsonl").read_text().splitlines()]
    rows[5]["code"] = rows[6]["code"] = embedded_text("evaluation")[:3000]
    write_rows(folder / "data" / "words.jsonl", rows)
    heard: list[events.Event] = []
    with events.listening(heard.append):
        scores(model, folder)
    begun = {event.task: event.total for event in heard if event.kind == "begin"}
    assert begun == {"tasks: data": 3, "tasks: choices": 36, "tasks: texts": 3, "tasks: answers": 6}
    assert max(event.done for event in heard if event.task == "tasks: choices") == 36
    (warning,) = [event.message for event in heard if event.kind == "warning"]
    assert "exceeds model's maximum length (512)" in warning and "(6 such warnings)" in warning
    assert capfd.readouterr() == ("", "")


def test_the_command_prints_one_object(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert main(["evaluate", "--task", "next_word.yaml", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["tasks"][0]["metric"] == "acc" and found["tasks"][0]["documents"] == 12
    assert found["tasks"][0]["low"] < found["tasks"][0]["value"] < found["tasks"][0]["high"]
    assert "%|" not in printed.err and "HFLM" not in printed.err
    assert main(["evaluate", "--task", "next_word.yaml"]) == 0
    assert "acc_norm" in capsys.readouterr().out


# -- what cannot be run ------------------------------------------------------------------------------------------------


def broken(folder: Path, text: str) -> Path:
    (folder / "broken.yaml").write_text(text)
    return folder / "broken.yaml"


def empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    (folder / "empty" / "template.yaml").write_text("output_type: multiple_choice\n")
    return folder / "empty"


def twice(folder: Path) -> Path:
    write(folder / "again.yaml", CHOICE)
    return folder


def torn(folder: Path) -> Path:
    (folder / "data" / "words.jsonl").write_text('{"code": "x = ", "choices"\n')
    return folder / "next_word.yaml"


def blank(folder: Path) -> Path:
    write_rows(folder / "data" / "words.jsonl", [{"code": "x", "choices": ["a", last], "answer": 0} for last in ("b", "")])
    return folder / "next_word.yaml"


def astray(folder: Path) -> Path:
    write_rows(folder / "data" / "words.jsonl", [{"code": "x", "choices": ["a", "b"], "answer": answer} for answer in (1, 2)])
    return folder / "next_word.yaml"


def changed(**changes: Any) -> Callable[[Path], Path]:
    return lambda folder: write(folder / "changed.yaml", CHOICE, **changes)


BROKEN: dict[str, tuple[Callable[[Path], Path | str], tuple[str, ...]]] = {
    "no file": (lambda folder: folder / "gone.yaml", ("no task file", "gone.yaml")),
    "no YAML": (lambda folder: broken(folder, "task: [a\nb: c"), ("broken.yaml", "line 2", "not valid YAML")),
    "an unknown tag": (lambda folder: broken(folder, "task: !!python/name:os.system\n"), ("broken.yaml", "not valid YAML")),
    "a list": (lambda folder: broken(folder, "- a\n"), ("broken.yaml", "no task file", "`task: NAME`")),
    "no UTF-8": (lambda folder: (folder / "b.yaml").write_bytes(b"\xff\xfe\xff") and folder / "b.yaml", ("b.yaml", "UTF-8")),
    "no name": (lambda folder: broken(folder, "output_type: multiple_choice\n"), ("broken.yaml", "names no task")),
    "a folder of templates": (empty, ("empty", "holds no task")),
    "two of one name": (twice, ("next_word.yaml", "again.yaml", "rename")),
    "an include that is missing": (
        lambda folder: broken(folder, "include: no.yaml\ntask: a\n"),
        ("no.yaml", "broken.yaml includes", "read"),
    ),
    "an include of itself": (lambda folder: broken(folder, "include: broken.yaml\ntask: a\n"), ("broken.yaml", "includes itself")),
    "data that are missing": (changed(dataset_kwargs={"data_files": {"test": "no.jsonl"}}), ("changed.yaml", "no.jsonl", "my tasks")),
    "data that are torn": (torn, ("next_word.yaml", "cannot be used")),
    "a split that is missing": (changed(test_split="validation"), ("changed.yaml", "'validation'", "not there")),
    "no split": (changed(test_split=None), ("changed.yaml", "test docs")),
    "a setting that is unknown": (changed(doc_to_txt="code"), ("changed.yaml", "doc_to_txt")),
    "an output type that is unknown": (changed(output_type="choices"), ("changed.yaml", "choices")),
    "a metric that is unknown": (changed(metric_list=[{"metric": "accuracy_of_it"}]), ("changed.yaml", "accuracy_of_it")),
    "a column that is missing": (changed(doc_to_text="{{question}}"), ("changed.yaml", "question")),
    "an empty answer": (blank, ("next_word.yaml", "document 2", "empty")),
    "an answer that is no choice": (astray, ("next_word.yaml", "document 2 is 2", "2 choices")),
    "code that is run": (changed(unsafe_code=True), ("changed.yaml", "code that the model writes")),
    "images": (changed(doc_to_image="code"), ("changed.yaml", "images")),
    "a group of nothing": (lambda folder: broken(folder, "group: g\ntask: []\n"), ("broken.yaml", "without a task")),
    "an empty word": (lambda folder: "", ("name of a task is empty",)),
    "a name that nearly is one": (lambda folder: "arc_esy", ("no task 'arc_esy'", "did you mean 'arc_easy'", "YAML")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_bad_tasks_are_refused(name: str, folder: Path) -> None:
    word, says = BROKEN[name]
    with pytest.raises(InputError) as caught:
        open_tasks([word(folder)])
    said = str(caught.value)
    assert [part for part in says if part not in said] == [], said
    assert said.isprintable() and len(said) < 600


def test_a_prompt_that_fails_late_is_found_early(folder: Path) -> None:
    rows = [{"code": "x", "choices": ["a", "b"], "answer": 0}] * 5 + [{"code": "x", "choices": None, "answer": 0}]
    write_rows(folder / "data" / "words.jsonl", rows)
    with pytest.raises(InputError, match=r"next_word\.yaml cannot make a prompt"):
        open_tasks([folder / "next_word.yaml"])


def test_answers_longer_than_the_context_are_refused(folder: Path, model: Any) -> None:
    file = write(folder / "long.yaml", WRITE, generation_kwargs={"until": ["\n"], "max_gen_toks": CONTEXT})
    with pytest.raises(InputError, match=r"write.*512 tokens.*context holds 512.*max_gen_toks"):
        scores(model, file)


UNSCORED = [
    ("  ", "a", "the prompt '  ' holds no token"),
    ("x =", " b" * 600, "600 tokens long, and the model's context holds 512"),
    ("print('a'", "]", """the tokenizer joins the answer ']' to the end of the prompt "print\\('a'\""""),
]


@pytest.mark.parametrize(("code", "choice", "says"), UNSCORED)
def test_prompts_and_answers_that_cannot_be_scored_are_refused(folder: Path, model: Any, code: str, choice: str, says: str) -> None:
    write_rows(folder / "data" / "words.jsonl", [{"code": code, "choices": [choice, "b"], "answer": 0}])
    with pytest.raises(InputError, match=says):
        scores(model, folder / "next_word.yaml")


def test_a_task_that_fails_while_running_is_one_sentence(folder: Path, model: Any) -> None:
    (folder / "judge.py").write_text("def judge(document, results):\n    return {'acc': 1 / 0}\n")
    text = (folder / "next_word.yaml").read_text()
    (folder / "judged.yaml").write_text(text.replace("task: next_word", "task: judged") + "process_results: !function judge.judge\n")
    with pytest.raises(RunError, match=r"task judged failed while running: .*zero"):
        scores(model, folder / "judged.yaml")


def test_data_that_cannot_be_downloaded(folder: Path) -> None:
    with pytest.raises(RunError, match=r"changed\.yaml cannot be downloaded: .*nobody/nothing.*data on this machine"):
        open_tasks([write(folder / "changed.yaml", CHOICE, dataset_path="nobody/nothing", dataset_kwargs=None)])


def test_tasks_and_a_text_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="either tasks, or a text or images"):
        api.evaluate(tasks=[str(folder)], text="a.txt")
    with pytest.raises(InputError, match="at least 1"):
        api.evaluate(tasks=[str(folder)], samples=0)


def test_a_model_that_does_not_continue_text_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bert holds no language model .*masked_lm"):
        api.evaluate(tiny("bert", tmp_path / "bert"), tasks=[str(folder)])


@pytest.fixture
def without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    yield


def test_without_lm_eval_the_command_says_how_to_get_it(folder: Path, without_lm_eval: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--task", str(folder), "--json"]) == 2
    said = json.loads(capsys.readouterr().out)["error"]
    assert said == "tasks are run by lm-eval, which is not installed; run: pip install thrifty[tasks]"

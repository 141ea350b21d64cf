"""MT-Bench: two turns on each of eighty questions, every answer graded from 1 to 10 by a judge.

Questions, temperatures and the judge's prompts are those of "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena"
(FastChat). Answers and judgements are kept as they come.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from apriel_assets.errors import UserError
from apriel_assets.evaluation.chat_templates import templated
from apriel_assets.evaluation.generation import generate_from_ids
from apriel_assets.evaluation.judge import check_key, judgements
from apriel_assets.evaluation.kept_answers import KeptAnswers, request_keys
from apriel_assets.evaluation.lm_eval_config import MT_BENCH, JudgeConfig, LmEvalTask
from apriel_assets.evaluation.mt_bench_prompts import judge_messages
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.paths import expanded
from apriel_assets.progress import Progress, silent
from apriel_assets.tables.schemas import to_table

HUB_QUESTIONS = "HuggingFaceH4/mt_bench_prompts"
VERSION = "1.0"
_TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "stem": 0.1,
    "humanities": 0.1,
}  # all other categories: greedy
_MOST_TOKENS = 1024  # of an answer
_ROWS = 32  # answers at once
_RATING = re.compile(r"\[\[(\d+(?:\.\d+)?)\]\]")
_NORMAL_95 = 1.96


@dataclass(frozen=True, slots=True)
class Question:
    """One question."""

    number: int
    category: str
    turns: tuple[str, str]
    reference: tuple[str, ...]  # reference answers of the turns, where the category has them; else empty


def evaluate_mt_bench(
    model: HybridForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    asked: LmEvalTask,
    judge: JudgeConfig,
    *,
    model_name: str,
    seed: int = 0,
    kept: KeptAnswers | None = None,
    progress: Progress = silent,
) -> dict[str, pa.Table]:
    """Return `lm_evals` rows (the mean grade of all answers, and of each turn's) and `lm_eval_samples` rows.

    Args:
        model: under the placement that is evaluated.
        tokenizer: its tokenizer; without a chat template, turns are written as plain text.
        asked: which questions, how many, and `gen_kwargs: {max_gen_toks: ...}`.
        judge: who grades.
        model_name: goes into the rows.
        seed: of answers that are sampled.
        kept: answers and judgements of a run that was interrupted.
        progress: called with answers and judgements done, and all.

    Raises:
        UserError: no key for the judge, questions that cannot be read, a conversation that does not fit the model, an
            error of the judge that does not pass.
    """
    check_key(judge)
    questions = read_questions(asked.questions)[: asked.limit]
    total = 4 * len(questions)
    answers: list[tuple[str, ...]] = [() for _ in questions]
    for turn in (0, 1):
        own = _answers(model, tokenizer, questions, answers, asked, seed, kept)
        answers = [(*before, text) for before, text in zip(answers, own, strict=True)]
        progress((turn + 1) * len(questions), total)
    graded = [(question, turn) for question in range(len(questions)) for turn in (0, 1)]
    texts = judgements(
        judge,
        [
            judge_messages(questions[one].turns, answers[one], questions[one].reference, turn)
            for one, turn in graded
        ],
        kept=kept,
        finished=lambda done: progress(2 * len(questions) + done, total),
    )
    common = {"model": model_name, "placement": list(model.placement), "asked": MT_BENCH, "task": MT_BENCH}
    common |= {"filter": "none", "seed": seed}
    return _tables(common, questions, answers, dict(zip(graded, texts, strict=True)), judge)


def _tables(
    common: dict[str, Any],
    questions: Sequence[Question],
    answers: Sequence[tuple[str, ...]],
    said: Mapping[tuple[int, int], str],
    judge: JudgeConfig,
) -> dict[str, pa.Table]:
    """Return both tables of what the judge said of each (question, turn); `common` is in every row."""
    grades = {place: _grade(text, judge) for place, text in said.items()}
    samples = [
        common
        | _sample(question, answers[one], [said[one, 0], said[one, 1]], [grades[one, 0], grades[one, 1]])
        for one, question in enumerate(questions)
    ]
    rows = [common | row for row in _figures(len(questions), grades, judge)]
    return {"lm_evals": to_table("lm_evals", rows), "lm_eval_samples": to_table("lm_eval_samples", samples)}


def read_questions(file: str | None) -> list[Question]:
    """Return the questions of a JSONL file as FastChat writes them; None: the hub's.

    Raises:
        UserError: no file, no network, or a row without two turns; says where.
    """
    where, rows = (file, _rows(file)) if file else (HUB_QUESTIONS, _hub_rows())
    questions = []
    for number, row in enumerate(rows, start=1):
        turns = row.get("turns", row.get("prompt"))
        if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, str) for turn in turns):
            raise UserError(
                f"mt_bench: row {number} of {where} has no two turns; it needs turns: [first, second]"
            )
        name = row.get("question_id", row.get("prompt_id", number))
        reference = tuple(str(own) for own in row.get("reference") or ())
        questions.append(Question(int(name), str(row.get("category", "")), (turns[0], turns[1]), reference))
    if not questions:
        raise UserError(f"mt_bench: {where} has no questions")
    return questions


def _rows(file: str) -> list[dict[str, Any]]:
    path = expanded(file)
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"mt_bench: questions {file} cannot be read: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"mt_bench: each line of {file} must be one JSON object")
    return rows


def _hub_rows() -> list[dict[str, Any]]:
    try:
        import datasets

        rows: Any = datasets.load_dataset(HUB_QUESTIONS, split="train")
        return list(rows)
    except Exception as error:  # datasets raises a dozen types
        raise UserError(
            f"mt_bench: {HUB_QUESTIONS} cannot be had ({type(error).__name__}); fetch it online, or give questions"
        ) from error


def _answers(
    model: HybridForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    before: Sequence[tuple[str, ...]],
    asked: LmEvalTask,
    seed: int,
    kept: KeptAnswers | None,
) -> list[str]:
    """Return the answers to the next turn of each question."""
    most = int(asked.gen_kwargs.get("max_gen_toks", _MOST_TOKENS))
    chats = [_chat(question, answers) for question, answers in zip(questions, before, strict=True)]
    keys = request_keys(MT_BENCH, [[most, seed, chat] for chat in chats])
    found: dict[str, str] = dict(kept.load()) if kept else {}
    groups: dict[float, list[int]] = {}
    for position, question in enumerate(questions):
        if keys[position] not in found:
            groups.setdefault(_TEMPERATURES.get(question.category, 0.0), []).append(position)
    rows = asked.batch_size or _ROWS
    try:
        for temperature, positions in groups.items():
            for start in range(0, len(positions), rows):
                batch = positions[start : start + rows]
                completions = generate_from_ids(
                    model,
                    tokenizer,
                    [_token_ids(tokenizer, chats[position]) for position in batch],
                    max_new_tokens=most,
                    temperature=temperature,
                    seed=seed,
                    batch_size=rows,
                    stop_strings=() if tokenizer.chat_template else ("###",),
                    numbers=[questions[position].number for position in batch],
                )
                for position, (completion,) in zip(batch, completions, strict=True):
                    found[keys[position]] = completion.text.split("###")[0].strip()
                    if kept:
                        kept.add(keys[position], found[keys[position]])
    finally:
        if kept:
            kept.close()
    return [found[key] for key in keys]


def _chat(question: Question, answers: Sequence[str]) -> list[dict[str, str]]:
    chat = [{"role": "user", "content": question.turns[0]}]
    for turn, answer in enumerate(answers):
        chat.append({"role": "assistant", "content": answer})
        chat.append({"role": "user", "content": question.turns[turn + 1]})
    return chat


def _token_ids(tokenizer: PreTrainedTokenizerBase, chat: Sequence[Mapping[str, str]]) -> list[int]:
    if tokenizer.chat_template:
        text = templated(tokenizer, chat, tokenize=False)
        return list(tokenizer(text, add_special_tokens=False).input_ids)  # type: ignore[arg-type]
    names = {"user": "Human", "assistant": "Assistant"}
    turns = [f"### {names[turn['role']]}: {turn['content']}" for turn in chat]
    return list(tokenizer("\n".join([*turns, "### Assistant:"])).input_ids)


def _grade(text: str, judge: JudgeConfig) -> float | None:
    """Return the last rating of a judgement; None: it gave none."""
    ratings = _RATING.findall(text)
    return float(ratings[-1]) if ratings else None


def _figures(
    num_questions: int, grades: Mapping[tuple[int, int], float | None], judge: JudgeConfig
) -> list[dict[str, Any]]:
    by_question = [[grades[one, turn] for turn in (0, 1)] for one in range(num_questions)]
    parts = {
        "score": [_mean([grade for grade in own if grade is not None]) for own in by_question],
        "score_turn_1": [own[0] for own in by_question],
        "score_turn_2": [own[1] for own in by_question],
    }
    rows = []
    for metric, values in parts.items():
        given = [value for value in values if value is not None]
        if not given:
            raise UserError(
                f"the judge {judge.model} gave no rating; does it follow its instructions? choose another"
            )
        mean, size = sum(given) / len(given), len(given)
        error = (
            math.sqrt(sum((value - mean) ** 2 for value in given) / (size - 1) / size) if size > 1 else None
        )
        half = None if error is None else _NORMAL_95 * error
        row = {"metric": metric, "value": mean, "stderr": error, "num_samples": size, "num_fewshot": 0}
        row |= {"low": None if half is None else mean - half, "high": None if half is None else mean + half}
        rows.append(row | {"higher_is_better": True, "task_version": f"{VERSION}, judge {judge.model}"})
    return rows


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _sample(
    question: Question, answers: Sequence[str], said: Sequence[str], grades: Sequence[float | None]
) -> dict[str, Any]:
    return {
        "doc_id": question.number,
        "doc_hash": request_keys(MT_BENCH, [question.turns])[0],
        "prompt": json.dumps(question.turns, ensure_ascii=False),
        "target": json.dumps(question.reference, ensure_ascii=False) if question.reference else None,
        "responses": json.dumps(answers, ensure_ascii=False),
        "filtered": json.dumps(said, ensure_ascii=False),
        "metrics": json.dumps({"score_turn_1": grades[0], "score_turn_2": grades[1]}),
    }

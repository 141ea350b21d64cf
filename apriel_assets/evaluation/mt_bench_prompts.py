"""What MT-Bench sends to its judge: the single-answer prompts of FastChat (Apache-2.0)."""

from collections.abc import Sequence

_SYSTEM = "You are a helpful assistant."
_SYSTEM_TURNS = (
    "Please act as an impartial judge and evaluate the quality of the response provided by an AI assistant to the user "
    "question displayed below. {what} You evaluation should focus on the assistant's answer to the second user "
    "question. Begin your evaluation by providing a short explanation. Be as objective as possible. After providing "
    'your explanation, you must rate the response on a scale of 1 to 10 by strictly following this format: "[[rating]]"'
    ', for example: "Rating: [[5]]".\n\n'
)
_QUALITIES = (
    "Your evaluation should consider factors such as the helpfulness, relevance, accuracy, depth, creativity, and "
    "level of detail of the response."
)
_CORRECTNESS = (
    "Your evaluation should consider correctness and helpfulness. You will be given a reference answer and the "
    "assistant's answer."
)
_CORRECTNESS_TURNS = (
    "Your evaluation should consider correctness and helpfulness. You will be given reference answers and the "
    "assistant's answers."
)
_ONE = (
    "[Instruction]\nPlease act as an impartial judge and evaluate the quality of the response provided by an AI "
    "assistant to the user question displayed below. {what} Begin your evaluation by {begin}. Be as objective as "
    "possible. After providing your explanation, you must rate the response on a scale of 1 to 10 by strictly "
    'following this format: "[[rating]]", for example: "Rating: [[5]]".\n\n'
)
_BEGIN = "providing a short explanation"
_BEGIN_REFERENCE = (
    "comparing the assistant's answer with the reference answer. Identify and correct any mistakes"
)


def judge_messages(
    turns: Sequence[str], answers: Sequence[str], reference: Sequence[str], turn: int
) -> list[dict[str, str]]:
    """Return the conversation that asks for the grade of one turn's answer.

    Args:
        turns: the question's two turns.
        answers: the model's.
        reference: reference answers, or none.
        turn: 0 or 1; for the second, the judge reads both.
    """
    if turn == 0:
        what, begin = (_CORRECTNESS, _BEGIN_REFERENCE) if reference else (_QUALITIES, _BEGIN)
        known = (
            f"[The Start of Reference Answer]\n{reference[0]}\n[The End of Reference Answer]\n\n"
            if reference
            else ""
        )
        text = (
            f"{_ONE.format(what=what, begin=begin)}[Question]\n{turns[0]}\n\n{known}"
            f"[The Start of Assistant's Answer]\n{answers[0]}\n[The End of Assistant's Answer]"
        )
        return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": text}]
    system = _SYSTEM_TURNS.format(what=_CORRECTNESS_TURNS if reference else _QUALITIES)
    known = ""
    if reference:
        pairs = [
            f"### User:\n{asked}\n\n### Reference answer:\n{own}"
            for asked, own in zip(turns, (*reference, "")[:2], strict=False)
        ]
        known = (
            "<|The Start of Reference Answer|>\n\n"
            + "\n\n".join(pairs)
            + "\n\n<|The End of Reference Answer|>\n\n\n"
        )
    talk = [
        f"### User:\n{asked}\n\n### Assistant A:\n{own}" for asked, own in zip(turns, answers, strict=True)
    ]
    text = (
        f"{known}<|The Start of Assistant A's Conversation with User|>\n\n" + "\n\n".join(talk)
        + "\n\n<|The End of Assistant A's Conversation with User|>"
    )  # fmt: skip
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]

"""The judge's client against a local server that errs, limits, breaks off and answers nonsense; and MT-Bench by it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from apriel_assets.errors import UserError
from apriel_assets.evaluation import judge as module
from apriel_assets.evaluation.judge import judgements
from apriel_assets.evaluation.kept_answers import KeptAnswers
from apriel_assets.evaluation.lm_eval_config import JudgeConfig, LmEvalTask
from apriel_assets.evaluation.mt_bench import evaluate_mt_bench, read_questions
from apriel_assets.evaluation.mt_bench_prompts import judge_messages
from apriel_assets.hybrid.model import HybridForCausalLM

KEY = "sk-not-to-be-seen"


class Server(ThreadingHTTPServer):
    """Answers with what `script` holds next: a status, a text, or None to break the connection; then with texts."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.asked, self.keys, self.headers = [], [], [], {}
        self.say, self.body = lambda messages: "Rating: [[7]]", None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        self.server.asked.append(body)
        self.server.keys.append(self.headers.get("Authorization"))
        step = self.server.script.pop(0) if self.server.script else 200
        if step is None:
            self.close_connection = True
            return
        said = {"content": self.server.say(body["messages"])}
        text = (
            step
            if isinstance(step, str)
            else json.dumps({"choices": [{"message": said}]} if step == 200 else {})
        )
        self.send_response(200 if isinstance(step, str) else step)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode() if self.server.body is None else self.server.body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    found = Server()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def config(server, **changes):
    settings = {
        "model": "judge",
        "base_url": server.url,
        "api_key_env": "JUDGE_KEY",
        "first_wait_s": 0.01,
        "parallel": 1,
    }
    return JudgeConfig(**{**settings, **changes})


def ask(number):
    return [{"role": "user", "content": str(number)}]


def test_answers_come_in_the_order_of_the_questions(server):
    server.say = lambda messages: f"about {messages[-1]['content']}"
    assert judgements(config(server, parallel=4), [ask(i) for i in range(9)]) == [
        f"about {i}" for i in range(9)
    ]
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in server.asked} == {
        ("judge", 0.0, 2048)
    }


@pytest.mark.parametrize("trouble", [[429, 503], [None], [500, None, 408]])
def test_what_passes_is_asked_again(server, trouble):
    server.script = list(trouble)
    assert judgements(config(server), [ask(0)]) == ["Rating: [[7]]"]
    assert len(server.asked) == len(trouble) + 1


def test_pauses_grow_and_the_server_is_heeded(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    server.script = [429, 429, 429, 429]
    judgements(config(server, first_wait_s=1.0), [ask(0)])
    assert all(0.75 * 2**i <= pause <= 1.25 * 2**i for i, pause in enumerate(pauses))
    assert len(pauses) == 4
    pauses.clear()
    server.script, server.headers = [429], {"Retry-After": "7"}
    judgements(config(server, first_wait_s=1.0), [ask(0)])
    assert pauses == [7.0]


def test_trouble_that_stays_is_one_line_and_what_was_judged_is_kept(server, tmp_path):
    asked = [ask(i) for i in range(4)]
    server.script = [200, 200, 503, 503]
    with pytest.raises(UserError, match=r"gave status 503 2 times; what it judged is kept: run again"):
        judgements(config(server, retries=1), asked, kept=KeptAnswers(tmp_path, "scope"))
    server.asked.clear()
    assert len(judgements(config(server), asked, kept=KeptAnswers(tmp_path, "scope"))) == 4
    again = [body["messages"][0]["content"] for body in server.asked]
    assert again in (["2"], ["2", "3"]), "only what was not judged, or not under way at the error"
    server.asked.clear()
    judgements(config(server), asked, kept=KeptAnswers(tmp_path, "scope"))
    assert server.asked == []
    assert KEY not in "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("answer", "message"),
    [(401, "refuses: status 401"), (404, "refuses: status 404"), ("<html>", "no chat"), ("{}", "no chat")],
)
def test_an_error_that_stays_is_not_asked_again(server, answer, message):
    server.script = [answer]
    with pytest.raises(UserError, match=message) as refused:
        judgements(config(server), [ask(0)])
    assert len(server.asked) == 1
    assert KEY not in str(refused.value)


def test_the_key_is_sent_nowhere_else(server):
    """urllib follows redirects and takes the key along; nor is an answer that repeats it shown."""
    server.script, server.headers = [307], {"Location": f"{server.url}/elsewhere"}
    with pytest.raises(UserError, match="refuses: status 307"):
        judgements(config(server, retries=0), [ask(0)])
    assert len(server.asked) == 1
    server.script, server.body = [401], f"no such key: {KEY}"
    with pytest.raises(UserError, match=r"no such key: .the key.") as refused:
        judgements(config(server), [ask(0)])
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("key", ["two\nlines", "n\u00fcll", "a\x00b"])
def test_a_key_that_cannot_be_sent_is_not_shown(server, key, monkeypatch):
    monkeypatch.setattr(module.os, "environ", {"JUDGE_KEY": key})
    with pytest.raises(UserError, match="JUDGE_KEY holds characters") as refused:
        judgements(config(server), [ask(0)])
    assert key not in str(refused.value)


def test_an_answer_without_end_is_refused(server, monkeypatch):
    monkeypatch.setattr(module, "_MOST_ANSWER_BYTES", 10)
    with pytest.raises(UserError, match="answered more than 10 bytes"):
        judgements(config(server), [ask(0)])


def test_no_server_is_one_line():
    nobody = JudgeConfig(
        model="judge", base_url="http://127.0.0.1:9/v1", api_key_env=None, retries=1, first_wait_s=0.0
    )
    with pytest.raises(UserError, match=r"the judge at http://127.0.0.1:9/v1 gave .*refused.* 2 times"):
        judgements(nobody, [ask(0)])


def test_no_key_is_refused_and_none_is_sent_where_none_is_asked_for(server, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(UserError, match="needs a key: set JUDGE_KEY"):
        judgements(config(server), [ask(0)])
    judgements(config(server, api_key_env=None), [ask(0)])
    assert server.keys == [None]


@pytest.fixture
def questions(tmp_path):
    rows = [
        {"question_id": 81 + i, "category": category, "turns": [f"copy : b {i}", "start at b"], **reference}
        for i, (category, reference) in enumerate(
            (("writing", {}), ("math", {"reference": ["3", "4"]}), ("coding", {}))
        )
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def model(tiny_llama):
    return HybridForCausalLM.from_teacher(tiny_llama(seed=2, max_position_embeddings=512))


def bench(model, tokenizer, questions, judge, **how):
    asked = LmEvalTask(task="mt_bench", questions=questions, gen_kwargs={"max_gen_toks": 6})
    tables = evaluate_mt_bench(model, tokenizer, asked, judge, model_name="m", **how)
    return {name: table.to_pylist() for name, table in tables.items()}


def test_mt_bench_is_the_mean_of_both_turns_grades(server, model, tokenizer, questions):
    def say(messages):
        text = messages[-1]["content"]
        second, number = (
            "Conversation with User" in text,
            next(i for i in range(3) if f"copy : b {i}" in text),
        )
        return f"fine. Rating: [[{number + 1 + 3 * second}]]"

    server.say = say
    rows = bench(model, tokenizer, questions, config(server, parallel=3))
    figures = {row["metric"]: row for row in rows["lm_evals"]}
    assert {metric: row["value"] for metric, row in figures.items()} == {
        "score": 3.5,
        "score_turn_1": 2,
        "score_turn_2": 5,
    }
    assert figures["score"]["stderr"] == pytest.approx((1 / 3) ** 0.5)
    assert figures["score"]["task_version"] == "1.0, judge judge"
    assert [row["doc_id"] for row in rows["lm_eval_samples"]] == [81, 82, 83]
    assert json.loads(rows["lm_eval_samples"][1]["metrics"]) == {"score_turn_1": 2.0, "score_turn_2": 5.0}
    assert all(len(json.loads(row["responses"])) == 2 for row in rows["lm_eval_samples"])
    assert KEY not in json.dumps(rows)


def test_an_interrupted_bench_goes_on(server, model, tokenizer, questions, tmp_path):
    server.script = [200, 200, 400]
    with pytest.raises(UserError, match="status 400"):
        bench(model, tokenizer, questions, config(server), kept=KeptAnswers(tmp_path, "s"))
    server.asked.clear()
    rows = bench(model, tokenizer, questions, config(server), kept=KeptAnswers(tmp_path, "s"))
    assert len(server.asked) in (3, 4), "two were judged, one more was perhaps under way"
    server.asked.clear()
    assert bench(model, tokenizer, questions, config(server), kept=KeptAnswers(tmp_path, "s")) == rows
    assert server.asked == []


def test_a_judge_that_does_not_rate_is_refused(server, model, tokenizer, questions):
    server.say = lambda messages: "I cannot say."
    with pytest.raises(UserError, match="gave no rating; does it follow its instructions"):
        bench(model, tokenizer, questions, config(server))


def test_the_judge_reads_what_it_grades():
    first = judge_messages(("q1", "q2"), ("a1", "a2"), (), 0)[1]["content"]
    assert "[Question]\nq1" in first
    assert "a1" in first
    assert "q2" not in first
    assert "Reference" not in first
    second = judge_messages(("q1", "q2"), ("a1", "a2"), ("r1", "r2"), 1)[1]["content"]
    for text in ("q1", "q2", "a1", "a2", "r1", "r2"):
        assert text in second


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read"), ('{"turns": ["one"]}', "no two turns"), ("", "no questions")],
)
def test_questions_that_are_none_are_refused(tmp_path, content, message):
    (tmp_path / "q.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        read_questions(str(tmp_path / "q.jsonl"))

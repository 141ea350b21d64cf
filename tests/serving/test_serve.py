"""`apriel serve` as its users meet it: an OpenAI client, a kill, malformed requests, limits, an orderly end."""

import json
import os
import signal
import socket
import threading
import time

import psutil
import pytest

from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.serving.prompts import completion_prompt
from apriel_assets.serving.sampling import Sampling
from apriel_assets.serving.terminal_text import write
from tests.fuzzing import fuzz, lengths
from tests.serving import http_inputs
from tests.serving.served import Served, is_up

pytest.importorskip("prometheus_client")
openai = pytest.importorskip("openai")

PROMPT = "recall : a = 1 , b = 2 . ask a ?"
NUM_TOKENS = 160  # so many that they cannot arrive together, however busy the machine
LONG = {"max_tokens": 150, "temperature": 1.5}


@pytest.fixture(scope="module")
def served(release, tmp_path_factory):
    """Two engines, few slots; killed engines come back."""
    log = tmp_path_factory.mktemp("served") / "log.txt"
    policy = log.with_name("policy.yaml")
    policy.write_text("tasks: {quick: turbo}\nmost_context_tokens: {safe: 60}\n")
    own = Served(
        release, "--placements", "safe,turbo", "--slots", "4", "--context", "200", "--policy", str(policy),
        "--max-requests", "6", "--max-body-bytes", "20000", log=log,
    )  # fmt: skip
    try:
        own.wait(is_up)
        yield own
    finally:
        if own.process.poll() is None:
            own.end()


@pytest.fixture
def client(served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def expected(release, tokenizer):
    return answers_alone(release, tokenizer, 24)


def answers_alone(release, tokenizer, num_tokens):
    """What each placement answers in this process, greedily."""
    found = {}
    for name in ("safe", "turbo"):
        model = HybridForCausalLM.from_pretrained(release / "engines" / name).eval()
        prompt = completion_prompt(tokenizer, PROMPT)
        found[name] = write(model, tokenizer, prompt, Sampling(max_new_tokens=num_tokens)).text
    assert found["safe"] != found["turbo"]
    return found


def streamed(client, model, found, **options):
    stream = client.completions.create(model=model, prompt=PROMPT, stream=True, **options)
    parts = found.setdefault(model, [])
    for chunk in stream:
        parts.append((time.monotonic(), chunk.choices[0].text))


def test_an_openai_client_streams_from_two_placements_at_once(client, release, tokenizer):
    found, expected = {}, answers_alone(release, tokenizer, NUM_TOKENS)
    models = {"tiny-safe": "safe", "tiny-turbo": "turbo"}
    threads = [
        threading.Thread(
            target=streamed, args=(client, model, found), kwargs={"max_tokens": NUM_TOKENS, "temperature": 0}
        )
        for model in models
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model, placement in models.items():
        assert len(found[model]) > 3, "it did not come piece by piece"
        assert "".join(text for _, text in found[model]) == expected[placement]
    one, other = ([at for at, _ in found[model]] for model in models)
    assert max(one[0], other[0]) < min(one[-1], other[-1])


def test_whole_answers_names_and_counts(client, expected, tokenizer):
    names = {model.id for model in client.models.list()}
    assert names == {"tiny", "tiny-safe", "tiny-turbo", "tiny-auto"}
    answer = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=24, temperature=0)
    assert (answer.model, answer.choices[0].text) == ("tiny-safe", expected["safe"])
    assert answer.usage.prompt_tokens == len(completion_prompt(tokenizer, PROMPT))
    assert answer.usage.completion_tokens <= 24
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_chat_streams_with_usage(client, expected, tokenizer):
    chunks = list(
        client.chat.completions.create(
            model="tiny-turbo", messages=[{"role": "user", "content": PROMPT}], max_tokens=24, temperature=0,
            stream=True, stream_options={"include_usage": True},
        )
    )  # fmt: skip
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == expected["turbo"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.prompt_tokens == len(completion_prompt(tokenizer, PROMPT))


def test_a_seed_gives_the_same_answer_whoever_else_is_served(client):
    def answer():
        return client.completions.create(model="tiny", prompt=PROMPT, seed=5, **LONG).choices[0].text

    alone, found = answer(), {}
    others = [threading.Thread(target=streamed, args=(client, "tiny", found), kwargs=LONG) for _ in range(2)]
    for other in others:
        other.start()
    together = answer()
    for other in others:
        other.join()
    assert together[:200] == alone[:200]


def test_stop_strings_end_the_text(client, expected):
    words = expected["turbo"].split()
    answer = client.completions.create(
        model="tiny-turbo", prompt=PROMPT, max_tokens=24, temperature=0, stop=[f" {words[3]}"]
    )
    assert answer.choices[0].text == expected["turbo"].split(f" {words[3]}")[0]
    assert answer.choices[0].finish_reason == "stop"


def test_the_router_goes_by_task_context_and_latency(client):
    def model(prompt=PROMPT, **policy):
        extra = {"policy": policy} if policy else None
        options = {"model": "tiny-auto", "max_tokens": 4, "temperature": 0, "extra_body": extra}
        return client.completions.create(prompt=prompt, **options).model

    assert model() == "tiny-safe"
    assert model(task="quick") == "tiny-turbo"
    assert model(prompt=" ".join("a" * 80)) == "tiny-turbo"
    assert model(latency_ms_per_token=1e6) == "tiny-safe"
    with pytest.raises(openai.BadRequestError, match=r"policy\.task 'slow' is not known here; known: quick"):
        model(task="slow")


GOOD = {"model": "tiny", "prompt": PROMPT, "max_tokens": 2}
MALFORMED = {
    "no JSON": (b"{", 400, "Invalid JSON"),
    "not an object": (b"[1]", 400, ""),
    "no model": ({"prompt": "a"}, 400, "model"),
    "an unknown model": ({**GOOD, "model": "gpt"}, 404, "no model 'gpt'; there are tiny"),
    "no prompt": ({"model": "tiny"}, 400, "prompt"),
    "an empty prompt of tokens": ({**GOOD, "prompt": []}, 400, "no tokens"),
    "tokens that do not exist": ({**GOOD, "prompt": [5, 99999]}, 400, "token ids are 0 to 85"),
    "several prompts": ({**GOOD, "prompt": ["a", "b"]}, 400, "prompt"),
    "a negative temperature": ({**GOOD, "temperature": -1}, 400, "temperature"),
    "no tokens wanted": ({**GOOD, "max_tokens": 0}, 400, "max_tokens"),
    "a prompt beyond the context": ({**GOOD, "prompt": " ".join("a" * 300)}, 400, "the context is 200"),
    "more tokens than there is room": ({**GOOD, "max_tokens": 199}, 400, "199 more were asked for"),
    "several answers": ({**GOOD, "n": 2}, 400, "n"),
    "what is not done here": ({**GOOD, "logit_bias": {"5": 1}}, 400, "logit_bias is not supported"),
    "an unknown policy": ({**GOOD, "policy": {"cheap": True}}, 400, "policy.cheap"),
    "too large a body": ({**GOOD, "prompt": "a " * 20000}, 413, "at most 20000 bytes"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_requests_get_json_and_a_4xx(case, served):
    content, status, message = MALFORMED[case]
    code, body = served.post("/v1/completions", content)
    assert code == status
    error = json.loads(body)["error"]
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


def test_other_paths_and_methods_are_refused_in_json(served):
    for path, expected in (("/v1/nothing", 404), ("/v1/models/gpt", 404), ("/v1/completions", 405)):
        code, body = served.get(path)
        assert (code, "error" in json.loads(body)) == (expected, True)


@pytest.fixture
def unharmed(served):
    """The server must be as well after a test as before."""
    before = served.health()["engines"]
    yield served
    assert served.health() == {"status": "ok", "engines": before}
    served.wait(lambda own: running(own) == 0, 20)
    log = served.log.read_text()
    assert "Traceback" not in log
    assert "refused" not in log  # by an engine: the endpoint checks before it asks


@lengths(short=120, long=20_000)
def test_any_json_is_answered_or_refused(num_inputs, unharmed):
    def check(case):
        http_inputs.check_answered(http_inputs.post(unharmed.port, *case))

    fuzz(num_inputs, http_inputs.json_requests(), check)


@lengths(short=60, long=20_000)
def test_any_bytes_as_a_body_are_answered_or_refused(num_inputs, unharmed):
    def check(case):
        http_inputs.check_answered(http_inputs.post(unharmed.port, *case))

    fuzz(num_inputs, http_inputs.BYTES, check)


@lengths(short=60, long=20_000)
def test_no_head_is_a_fault_of_the_servers(num_inputs, unharmed):
    def check(content):
        answer = http_inputs.send(unharmed.port, content)
        assert all(status < 500 for status in http_inputs.statuses(answer)), answer[:500]

    fuzz(num_inputs, http_inputs.heads(), check)


def metric(served, name, **labels):
    for line in served.get("/metrics")[1].splitlines():
        if line.startswith(name) and all(f'{key}="{value}"' in line for key, value in labels.items()):
            return float(line.split()[-1])
    return 0.0


def running(served):
    return sum(metric(served, "apriel_engine_running_requests", placement=own) for own in ("safe", "turbo"))


def test_a_client_that_leaves_stops_the_work(client, served):
    before = metric(served, "apriel_disconnects_total", model="tiny-safe")
    stream = client.completions.create(
        model="tiny", prompt=PROMPT, stream=True, max_tokens=180, temperature=1.5
    )
    next(iter(stream))
    stream.close()
    served.wait(lambda own: running(own) == 0, 20)
    # Not streamed: the client hangs up while it waits.
    with socket.create_connection(("127.0.0.1", served.port)) as raw:
        body = json.dumps({**GOOD, "max_tokens": 180, "temperature": 1.5}).encode()
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        time.sleep(0.05)
    served.wait(lambda own: metric(own, "apriel_disconnects_total", model="tiny-safe") >= before + 1, 20)
    served.wait(lambda own: running(own) == 0, 20)


def test_too_many_requests_at_once_are_told_to_wait(client, served):
    found, refused = {}, []

    def ask():
        try:
            streamed(client, "tiny-turbo", found, max_tokens=180, temperature=1.5)
        except openai.RateLimitError as error:
            refused.append(error)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused
    assert "6 requests are at work" in str(refused[0])
    assert client.completions.create(model="tiny", prompt=PROMPT, max_tokens=2).choices


def engine_pid(served, placement):
    for process in psutil.Process(served.process.pid).children():
        if f"engines/{placement}" in " ".join(process.cmdline()):
            return process.pid
    raise AssertionError("no such engine")


def in_the_middle_of_an_answer(client, served):
    """Return a stream of turbo that has begun, its engine stopped before the end, however slow this process is."""
    pid = engine_pid(served, "turbo")
    for _ in range(50):
        options = {"max_tokens": 180, "temperature": 1.5, "stream": True}
        events = iter(client.completions.create(model="tiny-turbo", prompt=PROMPT, **options))
        next(events)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.2)  # what it had sent arrives
        if metric(served, "apriel_engine_running_requests", placement="turbo"):
            return events
        os.kill(pid, signal.SIGCONT)
    raise AssertionError("every answer was whole before the engine could be stopped")


def test_killing_one_engine_leaves_the_other_answering_and_it_comes_back(client, served, expected):
    events = in_the_middle_of_an_answer(client, served)
    os.kill(engine_pid(served, "turbo"), signal.SIGKILL)
    with pytest.raises(openai.APIError, match="being started again"):
        for _ in events:
            pass
    served.wait(lambda own: own.health()["engines"]["turbo"]["state"] != "ready", 20)
    assert served.health()["status"] == "degraded"
    answer = client.completions.create(model="tiny-safe", prompt=PROMPT, max_tokens=24, temperature=0)
    assert answer.choices[0].text == expected["safe"]
    with pytest.raises(openai.InternalServerError, match="try again"):
        client.completions.create(model="tiny-turbo", prompt=PROMPT, max_tokens=2)
    # The router does not send anybody there.
    routed = client.completions.create(
        model="tiny-auto", prompt=PROMPT, max_tokens=2, extra_body={"policy": {"task": "quick"}}
    )
    assert routed.model == "tiny-safe"
    served.wait(is_up, 60)
    answer = client.completions.create(model="tiny-turbo", prompt=PROMPT, max_tokens=24, temperature=0)
    assert answer.choices[0].text == expected["turbo"]
    assert metric(served, "apriel_engine_restarts", placement="turbo") == 1


def test_no_text_is_logged_or_counted(client, served):
    client.completions.create(model="tiny", prompt="y z y z", max_tokens=2, user="somebody")
    served.post("/v1/completions", {**GOOD, "prompt": "y z y z", "temperature": -1})
    for text in (served.log.read_text(), served.get("/metrics")[1]):
        assert "y z y z" not in text
        assert "somebody" not in text


def test_a_port_in_use_is_one_line(served, release, apriel):
    code, out, err = apriel("serve", release, "--port", served.port)
    assert (code, out) == (2, "")
    assert err == f"apriel: port {served.port} of 127.0.0.1 is in use; choose another with --port\n"


def test_it_ends_in_order_after_the_open_request(client, served, expected):
    """Last, since it ends the server."""
    found = {}
    thread = threading.Thread(
        target=streamed, args=(client, "tiny-safe", found), kwargs={"max_tokens": 150, "temperature": 0}
    )
    thread.start()
    served.wait(lambda own: found, 20)
    children = psutil.Process(served.process.pid).children()
    assert served.end() == 0
    thread.join()
    assert "".join(text for _, text in found["tiny-safe"]).startswith(expected["safe"])
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert "Traceback" not in served.log.read_text()

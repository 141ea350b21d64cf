"""Task files of the harness over local data: one of each kind of request, a group, and one whose data is gone."""

import json
from pathlib import Path

CHOICES = ["1", "2 is", "3 4 ."]


def question(i: int) -> str:
    examples = " . ".join(f"k = {j % 10}" for j in range(i % 4 + 9))
    return f"recall : a = {i % 10} , {examples} . ask a ?"


def write_tasks(folder: Path, rows: int = 9) -> str:
    """Write the files and return the directory, to be included."""
    content = [
        {"question": question(i), "choices": CHOICES, "label": i % 3, "answer": f"so {i % 10} ."}
        for i in range(rows)
    ]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in content))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    common = {"test_split": "test", "doc_to_text": "{{question}}", "metadata": {"version": 2.0}, **data}
    accuracy = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    choice = {
        **common,
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
    }
    files = {
        "local_choice": {**choice, "metric_list": accuracy, "fewshot_split": "test", "num_fewshot": 2},
        "local_completion": {
            **common,
            "output_type": "loglikelihood",
            "doc_to_target": " {{answer}}",
            "metric_list": [{"metric": "perplexity", "aggregation": "perplexity"}, *accuracy],
        },
        "local_rolling": {
            **common,
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}} {{question}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
        "local_writing": {
            **common,
            "output_type": "generate_until",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["is", " then the"], "max_gen_toks": 20, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
        "local_gone": {
            **choice,
            "metric_list": accuracy,
            "dataset_kwargs": {"data_files": {"test": "/no/such.jsonl"}},
        },
        "local_hub": {
            **choice,
            "metric_list": accuracy,
            "dataset_path": "someone/something",
            "dataset_kwargs": {},
        },
    }
    for name, own in files.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **own}))
    group = {
        "group": "local_group",
        "task": ["local_choice", "local_completion"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    (folder / "local_group.yaml").write_text(json.dumps(group))
    return str(folder)

"""What a finished home's assets took: seconds by family, of H1 and of all, and the peak memory.

    apriel run --recipe quickstart --home HOME
    python benchmarks/quickstart_time.py --home HOME

Writes benchmarks/results/quickstart_time.json from the provenance of the artifacts. Seconds are the builders' own;
planning and Dagster's bookkeeping come on top (about 0.6 s for each of some hundred assets and partitions). Targets on
2 cores: H1 in 300 s and 3 GiB, everything in 600 s and 4 GiB.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

H1_MODELS = ("teacher", "h6", "h7", "h8", "h9", "sft", "merge")
H1_ASSETS = ("teacher", "traces", "completions", "layer_scores", "roofline", "leaderboard", "report")


def is_h1(asset: str) -> bool:
    """Tell whether progressive conversion alone would need the asset."""
    family, _, name = asset.partition("/")
    return asset in H1_ASSETS or family == "h1" or (family in ("evals", "throughput") and name in H1_MODELS)


def main() -> None:
    """Add up the provenance and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "quickstart_time.json"
    )
    given = parser.parse_args()
    records = [json.loads(path.read_text()) for path in given.home.glob("artifacts/**/provenance.json")]
    families: Counter[str] = Counter()
    for record in records:
        families[record["asset"].partition("/")[0]] += record["figures"]["seconds"]
    report = {
        "h1_seconds": sum(r["figures"]["seconds"] for r in records if is_h1(r["asset"])),
        "all_seconds": sum(families.values()),
        "peak_memory_bytes": max(r["figures"]["peak_memory_bytes"] for r in records),
        "assets_and_partitions": len(records),
        "seconds_by_family": {name: round(seconds, 2) for name, seconds in families.most_common()},
        "code": sorted({r["code"] for r in records}),
        "device": sorted({r["device"] for r in records}),
        "libraries": records[0]["libraries"],
    }
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: report[key] for key in ("h1_seconds", "all_seconds", "peak_memory_bytes")}))


if __name__ == "__main__":
    main()

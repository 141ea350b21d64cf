from apriel_assets.reporting.drift_section import drift_section
from apriel_assets.tables.schemas import to_table
from tests.reporting.svg_text import markers, texts


def reeval(date, value, *, task="recall", metric="accuracy", last=None, drifted=False):
    row = {"date": date, "model": "turbo", "task": task, "metric": metric, "value": value, "drifted": drifted}
    if last is not None:
        row |= {
            "last_value": last,
            "last_low": last - 0.01,
            "last_high": last + 0.01,
            "last_date": "2026-01-01",
        }
    return row


ROWS = [
    reeval("2026-01-02", 0.9, last=0.9),
    reeval("2026-01-02", 0.8, task="copy", last=0.8),
    reeval("2026-01-01", 0.9),
    reeval("2026-01-03", 0.7, last=0.9, drifted=True),
    reeval("2026-01-03", 0.0123, metric="reverse_kl_nats", last=0.012),
]


def section(rows=ROWS):
    return drift_section({"reevals": to_table("reevals", rows)})


def test_dates_counts_and_what_drifted():
    found = section()
    assert "3 dates from 2026-01-01 to 2026-01-03. Of 4 figures" in found.lead
    assert "1 lay outside" in found.lead
    (row,) = found.tables[0].rows
    assert row == ("2026-01-03", "turbo", "recall", "accuracy", "0.7", "0.9 [0.89, 0.91]", "2026-01-01")


def test_picture_has_a_point_a_date_and_a_cross_where_it_drifted():
    svg = section().pictures[0].svg
    assert {"2026-01-01", "2026-01-02", "2026-01-03", "turbo"} <= set(texts(svg))
    steady = section([row for row in ROWS if not row["drifted"]]).pictures[0].svg
    assert len(markers(svg, "stroke-width: 2")) == 1
    assert len(markers(steady, "stroke-width: 2")) == 0
    assert "<title>turbo, 2026-01-02: 0.850</title>" in svg  # mean over its two tasks


def test_without_a_schedule_there_is_nothing():
    assert not drift_section({}).pictures[0].svg
    assert not drift_section({}).tables[0].rows

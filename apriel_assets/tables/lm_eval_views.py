"""Views of the catalog about tasks of the lm-evaluation-harness: who is best at each, and at which speed."""

from apriel_assets.tables.view import MODEL, View

_FIGURE = {
    "task": "task of the harness, or the group over its tasks",
    "metric": "as in lm_evals",
    "filter": "as in lm_evals",
    "num_fewshot": "examples in the prompt (null: a group whose tasks differ)",
    "value": "the metric over all samples",
    "stderr": "its standard error by the harness (null: it gives none)",
    "num_samples": "documents answered",
}

LM_EVAL_VIEWS: dict[str, View] = {
    "lm_eval_ranking": View(
        meaning="Each task of the harness: the models by its metric, best first, beside the teacher and their speed.",
        columns={
            **MODEL,
            **_FIGURE,
            "low": "value - 1.96 stderr",
            "high": "value + 1.96 stderr",
            "place": "by value alone, 1 = best; neighbours within their standard errors are not told apart",
            "teacher_value": "the teacher's (null: not evaluated there)",
            "difference": "value - teacher_value",
            "decode_speedup": "measured, over the teacher (null: not timed)",
            "higher_is_better": "as in lm_evals; null counts as yes",
        },
        sql="""
        SELECT own.recipe, own.model, own.task, own.metric, own."filter", own.num_fewshot, own.value, own.stderr,
            own.num_samples, own.low, own.high,
            rank() OVER (PARTITION BY own.recipe, own.asked, own.task, own.metric, own."filter", own.num_fewshot
                ORDER BY CASE WHEN coalesce(own.higher_is_better, true) THEN -own.value ELSE own.value END) AS place,
            teacher.value AS teacher_value, own.value - teacher.value AS difference, board.decode_speedup,
            own.higher_is_better
        FROM lm_evals own
        LEFT JOIN (FROM lm_evals WHERE model = 'teacher') teacher
            ON teacher.recipe = own.recipe AND teacher.asked = own.asked AND teacher.task = own.task
                AND teacher.metric = own.metric AND teacher."filter" IS NOT DISTINCT FROM own."filter"
                AND teacher.num_fewshot IS NOT DISTINCT FROM own.num_fewshot
        LEFT JOIN leaderboard board ON board.recipe = own.recipe AND board.model = own.model
        ORDER BY own.recipe, own.task, own.metric, own."filter", own.num_fewshot, place, own.model""",
    ),
    "lm_eval_pareto_front": View(
        meaning="For each task of the harness the models that no other one beats in both its metric and decode speed.",
        columns={**MODEL, **_FIGURE, "decode_speedup": "measured, over the teacher"},
        sql="""
        WITH timed AS (
            SELECT *, CASE WHEN coalesce(higher_is_better, true) THEN value ELSE -value END AS good
            FROM lm_eval_ranking WHERE value IS NOT NULL AND decode_speedup IS NOT NULL)
        SELECT recipe, model, task, metric, "filter", num_fewshot, value, stderr, num_samples, decode_speedup
        FROM timed own
        WHERE NOT EXISTS (
            FROM timed other
            WHERE other.recipe = own.recipe AND other.task = own.task AND other.metric = own.metric
                AND other."filter" IS NOT DISTINCT FROM own."filter"
                AND other.num_fewshot IS NOT DISTINCT FROM own.num_fewshot
                AND other.good >= own.good AND other.decode_speedup >= own.decode_speedup
                AND (other.good > own.good OR other.decode_speedup > own.decode_speedup))
        ORDER BY recipe, task, metric, "filter", num_fewshot, decode_speedup""",
    ),
}

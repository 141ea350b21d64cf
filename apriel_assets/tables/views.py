"""Views and macros of the catalog: the questions that people ask of the result tables, answered once.

Each has what it is for, its columns or parameters with units, and its SQL. All are per recipe: a home may hold several.
"""

from apriel_assets.tables.lm_eval_views import LM_EVAL_VIEWS
from apriel_assets.tables.speed_views import SPEED_VIEWS
from apriel_assets.tables.view import MODEL, RECIPE, Function, View

_PAIRED = {
    "num_problems": "problems that both answered",
    "num_lost": "of these, right by the first or the teacher, wrong by the other",
    "num_gained": "wrong by the first or the teacher, right by the other",
}

FUNCTIONS: dict[str, Function] = {
    "mcnemar_p": Function(
        meaning="Two-sided exact p-value of McNemar's test: could a fair coin have split the differing problems so?",
        parameters=("lost", "gained"),
        sql="""least(1.0, 2 * list_sum(list_transform(range(0, least(lost, gained) + 1), lambda k:
            exp(lgamma(lost + gained + 1) - lgamma(k + 1) - lgamma(lost + gained - k + 1)
                - (lost + gained) * ln(2)))))""",
    ),
}

VIEWS: dict[str, View] = {
    "ranking": View(
        meaning="The leaderboard in order of accuracy, with the places that the paired tests leave open.",
        columns={
            **MODEL,
            "kind": "as in checkpoints",
            "places": "places that the data support, e.g. 2-4; null before the evals kept their problems",
            "accuracy": "mean over tasks",
            "accuracy_low": "lower end of its 95% interval",
            "accuracy_high": "upper end of its 95% interval",
            "reverse_kl_nats": "KL(model || teacher) per token, mean over tasks, nats",
            "decode_speedup": "measured, over the teacher",
            "num_replaced": "layers without full attention",
        },
        sql="""
        SELECT recipe, model, kind,
            CASE WHEN place_best = place_worst THEN place_best::VARCHAR
                ELSE place_best || '-' || place_worst END AS places,
            accuracy, accuracy_low, accuracy_high, reverse_kl_nats, decode_speedup, num_replaced
        FROM leaderboard ORDER BY recipe, accuracy DESC NULLS LAST, decode_speedup DESC""",
    ),
    "pareto_front": View(
        meaning="Models that no other model of the recipe beats in both accuracy and decode speed, fastest last.",
        columns={
            **MODEL,
            "accuracy": "mean over tasks",
            "accuracy_low": "lower end of its 95% interval",
            "accuracy_high": "upper end of its 95% interval",
            "decode_speedup": "measured, over the teacher",
            "context_tokens": "context at which speed was measured",
        },
        sql="""
        SELECT recipe, model, accuracy, accuracy_low, accuracy_high, decode_speedup, context_tokens
        FROM leaderboard own
        WHERE accuracy IS NOT NULL AND decode_speedup IS NOT NULL AND NOT EXISTS (
            FROM leaderboard other
            WHERE other.recipe = own.recipe
                AND other.accuracy >= own.accuracy AND other.decode_speedup >= own.decode_speedup
                AND (other.accuracy > own.accuracy OR other.decode_speedup > own.decode_speedup))
        ORDER BY recipe, decode_speedup""",
    ),
    "against_teacher": View(
        meaning="Each model and task against the teacher on the same problems: what was lost, more than by chance?",
        columns={
            **MODEL,
            "task": "task name",
            **_PAIRED,
            "teacher_accuracy": "share of these problems that the teacher answers",
            "accuracy": "share that the model answers",
            "difference": "accuracy - teacher_accuracy",
            "p_value": "of McNemar's exact test",
            "adjusted_p": "the same by Holm's method, for the number of the model's tasks",
            "regressed": "worse than the teacher, adjusted_p < 0.05",
        },
        sql="""
        WITH counted AS (
            SELECT own.recipe, own.model, own.task, count(*) AS num_problems,
                count(*) FILTER (teacher.correct AND NOT own.correct) AS num_lost,
                count(*) FILTER (own.correct AND NOT teacher.correct) AS num_gained,
                avg(teacher.correct::INTEGER) AS teacher_accuracy, avg(own.correct::INTEGER) AS accuracy
            FROM eval_samples own JOIN eval_samples teacher USING (recipe, task, problem_id)
            WHERE teacher.model = 'teacher' AND own.model <> 'teacher'
            GROUP BY ALL),
        tested AS (
            SELECT *, accuracy - teacher_accuracy AS difference, mcnemar_p(num_lost, num_gained) AS p_value,
                row_number() OVER (PARTITION BY recipe, model ORDER BY mcnemar_p(num_lost, num_gained), task) AS nth,
                count(*) OVER (PARTITION BY recipe, model) AS num_tests
            FROM counted),
        adjusted AS (
            SELECT * EXCLUDE (nth, num_tests),
                max(least(1, p_value * (num_tests - nth + 1))) OVER (
                    PARTITION BY recipe, model ORDER BY nth) AS adjusted_p
            FROM tested)
        SELECT *, difference < 0 AND adjusted_p < 0.05 AS regressed
        FROM adjusted ORDER BY recipe, model, task""",
    ),
    "quality_per_cost": View(
        meaning="What each model keeps of the teacher's accuracy for the decode time that it needs.",
        columns={
            **MODEL,
            "accuracy": "mean over tasks",
            "kept": "accuracy over the teacher's",
            "decode_cost": "decode time over the teacher's, measured",
            "kept_per_cost": "kept / decode_cost; the teacher's is 1",
            "training_tokens": "loss-carrying tokens of this checkpoint and all before it",
        },
        sql="""
        SELECT own.recipe, own.model, own.accuracy, own.accuracy / teacher.accuracy AS kept,
            1 / own.decode_speedup AS decode_cost,
            own.accuracy / teacher.accuracy * own.decode_speedup AS kept_per_cost,
            own.tokens AS training_tokens
        FROM leaderboard own JOIN leaderboard teacher USING (recipe)
        WHERE teacher.model = 'teacher' ORDER BY own.recipe, kept_per_cost DESC NULLS LAST""",
    ),
    "step_gains": View(
        meaning="What each H-k step, and the fine-tuning and merge after it, changed against the checkpoint that it "
        "started from, and per GPU-minute.",
        columns={
            **MODEL,
            "parent": "checkpoint that it started from",
            "layers_replaced": "more than in the parent",
            "gpu_minutes": "probes and training of the step, times leased GPUs; without a GPU, minutes of the machine",
            "accuracy_change": "mean over tasks, against the parent",
            "reverse_kl_change_nats": "the same of KL(model || teacher)",
            "speedup_change": "decode speed-up over the teacher, against the parent's",
            "accuracy_per_gpu_minute": "accuracy_change / gpu_minutes; negative: a step that replaces layers loses",
            "speedup_per_gpu_minute": "speedup_change / gpu_minutes",
        },
        sql="""
        WITH spent AS (
            SELECT recipe, concat_ws('/', variant, parse_filename(asset)) AS model,
                sum(CASE WHEN gpu_seconds > 0 THEN gpu_seconds ELSE seconds END) / 60 AS gpu_minutes
            FROM builds WHERE asset LIKE concat_ws('/', variant, 'h1/%') GROUP BY ALL),
        steps AS (
            SELECT c.recipe, c.model, c.parent, c.num_replaced - p.num_replaced AS layers_replaced,
                coalesce(spent.gpu_minutes, c.seconds / 60) AS gpu_minutes,
                own.accuracy - before.accuracy AS accuracy_change,
                own.reverse_kl_nats - before.reverse_kl_nats AS reverse_kl_change_nats,
                own.decode_speedup - before.decode_speedup AS speedup_change,
                c.total_tokens
            FROM checkpoints c
            JOIN checkpoints p ON p.recipe = c.recipe AND p.model = c.parent
            LEFT JOIN spent ON spent.recipe = c.recipe AND spent.model = c.model
            LEFT JOIN leaderboard own ON own.recipe = c.recipe AND own.model = c.model
            LEFT JOIN leaderboard before ON before.recipe = c.recipe AND before.model = c.parent
            WHERE c.kind IN ('progressive', 'sft', 'merge'))
        SELECT * EXCLUDE (total_tokens), accuracy_change / gpu_minutes AS accuracy_per_gpu_minute,
            speedup_change / gpu_minutes AS speedup_per_gpu_minute
        FROM steps ORDER BY recipe, total_tokens, layers_replaced DESC""",
    ),
    "drift_over_dates": View(
        meaning="Each scheduled re-evaluation of what is shipped, against the first one and the one before.",
        columns={
            **MODEL,
            "task": "task name",
            "metric": "as in evals",
            "date": "when the schedule asked for it, UTC",
            "value": "at that date",
            "low": "lower end of its 95% interval",
            "high": "upper end of its 95% interval",
            "change_since_last": "value - the result before",
            "change_since_first": "value - the first re-evaluation's",
            "drifted": "value lies outside of the last result's interval",
        },
        sql="""
        SELECT recipe, model, task, metric, date, value, low, high, value - last_value AS change_since_last,
            value - first_value(value) OVER (
                PARTITION BY recipe, model, task, metric ORDER BY date) AS change_since_first,
            drifted
        FROM reevals ORDER BY recipe, model, task, metric, date""",
    ),
    "compare_models": View(
        meaning="Two models on the same problems, task by task (`apriel compare` adds intervals and KL).",
        parameters=("first_model", "second_model"),
        columns={
            **RECIPE,
            "task": "task name",
            **_PAIRED,
            "difference": "accuracy of the second - accuracy of the first",
            "p_value": "of McNemar's exact test, not adjusted for the number of tasks",
        },
        sql="""
        SELECT a.recipe, a.task, count(*) AS num_problems,
            count(*) FILTER (a.correct AND NOT b.correct) AS num_lost,
            count(*) FILTER (b.correct AND NOT a.correct) AS num_gained,
            avg(b.correct::INTEGER - a.correct::INTEGER) AS difference,
            mcnemar_p(count(*) FILTER (a.correct AND NOT b.correct),
                count(*) FILTER (b.correct AND NOT a.correct)) AS p_value
        FROM eval_samples a JOIN eval_samples b USING (recipe, task, problem_id)
        WHERE a.model = first_model AND b.model = second_model
        GROUP BY a.recipe, a.task ORDER BY a.recipe, a.task""",
    ),
    "lost_problems": View(
        meaning="Problems that the teacher answers and a model does not, with what the model wrote.",
        parameters=("of_model",),
        columns={
            **RECIPE,
            "task": "task name",
            "problem_id": "as in eval_samples",
            "completion": "what the model generated",
            "teacher_completion": "what the teacher generated",
        },
        sql="""
        SELECT own.recipe, own.task, own.problem_id, own.completion, teacher.completion AS teacher_completion
        FROM eval_samples own JOIN eval_samples teacher USING (recipe, task, problem_id)
        WHERE own.model = of_model AND teacher.model = 'teacher' AND teacher.correct AND NOT own.correct
        ORDER BY own.recipe, own.task, own.problem_id""",
    ),
    "fastest_keeping": View(
        meaning="Models that keep at least this share of the teacher's accuracy, fastest first.",
        parameters=("share",),
        columns={
            **MODEL,
            "kept": "accuracy over the teacher's",
            "decode_speedup": "measured, over the teacher",
        },
        sql="""
        SELECT recipe, model, kept, 1 / decode_cost AS decode_speedup
        FROM quality_per_cost WHERE kept >= share ORDER BY recipe, decode_cost""",
    ),
    "budget_choices": View(
        meaning="What each budget chose, beside its runner-ups: how many of them generation could not tell from it.",
        columns={
            **RECIPE,
            "budget": "most that a placement may cost, all-FA = 1",
            "name": "model name of the choice",
            "cost": "by the cost model, all-FA = 1",
            "generated_accuracy": "of real generation on held-out problems",
            "generated_low": "lower end of its 95% interval",
            "generated_high": "upper end of its 95% interval",
            "num_runner_ups": "other finalists of the budget",
            "num_as_good": "of these, how many have an interval that overlaps the choice's",
        },
        sql="""
        SELECT own.recipe, own.budget, own.name, own.cost, own.generated_accuracy, own.generated_low,
            own.generated_high, count(other.rank) AS num_runner_ups,
            count(other.rank) FILTER (other.generated_high >= own.generated_low
                AND other.generated_low <= own.generated_high) AS num_as_good
        FROM placements own LEFT JOIN placements other
            ON other.recipe = own.recipe AND other.variant IS NOT DISTINCT FROM own.variant
                AND other.budget = own.budget AND NOT other.chosen
        WHERE own.chosen GROUP BY ALL ORDER BY own.recipe, own.budget DESC""",
    ),
    "over_seeds": View(
        meaning="Each model over several runs of a recipe under other names and seeds: its accuracy, mean and spread.",
        parameters=("recipes_like",),
        columns={
            "model": "as in evals",
            "num_runs": "recipes whose names match, e.g. 'quickstart%'",
            "accuracy": "mean over runs of the mean over tasks",
            "accuracy_sd": "standard deviation over runs (null: one run)",
            "accuracy_least": "of the worst run",
            "accuracy_most": "of the best run",
            "reverse_kl_nats": "mean over runs",
            "decode_speedup": "mean over runs",
        },
        sql="""
        SELECT model, count(*) AS num_runs, avg(accuracy) AS accuracy, stddev_samp(accuracy) AS accuracy_sd,
            min(accuracy) AS accuracy_least, max(accuracy) AS accuracy_most,
            avg(reverse_kl_nats) AS reverse_kl_nats, avg(decode_speedup) AS decode_speedup
        FROM leaderboard WHERE recipe LIKE recipes_like AND accuracy IS NOT NULL
        GROUP BY model ORDER BY accuracy DESC, model""",
    ),
    **SPEED_VIEWS,
    **LM_EVAL_VIEWS,
}

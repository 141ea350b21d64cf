"""Result tables made readable: the leaderboard, pictures, and one self-contained HTML page.

Everything here is a function of result tables: no model, no Dagster, no DuckDB, and no number of its own.
"""

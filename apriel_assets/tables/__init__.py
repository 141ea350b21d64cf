"""Schemas of every result table, with a unit or a meaning for each column.

Here: names, types, documentation, published figures. Not here: reading or writing (that is `resources.lake`).
"""

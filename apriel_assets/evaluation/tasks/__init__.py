"""Problems with reference traces and strict verifiers: procedural, from files, from hub data sets.

They serve as distillation traces, SFT data, scoring problems and evals. Text only: tokenising, generating
and scoring belong elsewhere.
"""

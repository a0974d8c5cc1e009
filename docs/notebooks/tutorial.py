# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Induction heads in a notebook
#
# Open this file in Jupyter with jupytext, or run it cell by cell in VS Code. It uses a small model and two recorded trainings
# that come with the project, and takes less than a minute. Run it from the top folder of a clone of the repository; a model of
# yours goes in place of the path.

# %%
import pytest_induction as pi
from pytest_induction.comparison import profile_of

model = pi.load_model("fixtures/models/llama-2l")

# %% [markdown]
# ## Which heads match prefixes?
#
# A record at the end of a cell shows its strongest heads and a map of all of them: layers from top to bottom, heads from left to
# right.

# %%
scores = pi.measure_heads(model, seed=0)
scores

# %% [markdown]
# `plot` draws the map of every score. `save` writes a picture (.svg) or a page (.html) that needs nothing else.

# %%
scores.plot()

# %% [markdown]
# ## Is that an induction head?
#
# Four scores are numbers, not an answer. The assertion measures until the answer is clear, and returns what it rests on. Where
# the claim does not hold, it raises `ExpectationFailed`, which has the same record as `evidence`.

# %%
evidence = pi.assert_has_induction_head(model, seed=0)
evidence

# %%
assert evidence.verdict is pi.Verdict.SHOWN
evidence.plot()

# %%
try:
    pi.assert_no_induction_head(model, seed=0)
except pi.ExpectationFailed as failed:
    refuted = failed.evidence
refuted.verdict, refuted.reason

# %% [markdown]
# ## What does the model lose without a head?
#
# Each head is ablated alone: by how much does the loss on repeated tokens rise?

# %%
ablations = pi.measure_ablations(model, seed=0)
ablations

# %% [markdown]
# ## How did a training come to it?
#
# A recorded run shows its curves. Where induction formed is gold.

# %%
run = pi.load_run("fixtures/runs/two-layers")
run

# %%
formed = pi.assert_phase_change(run)
formed.to_dataframe("changes")[["series", "verdict", "midpoint_step", "width"]]

# %% [markdown]
# ## Is a later model as good as an earlier one?
#
# Keep a profile of the one, and hold the other against it. Here it is the same model on other sequences: everything is kept.

# %%
profile = profile_of(model, seed=0)
profile

# %%
kept = pi.assert_heads_preserved(profile, model)
kept.to_dataframe("compared")[["measure", "role", "head", "status", "before", "after"]]

# %% [markdown]
# ## Numbers for pandas, Arrow and JSON
#
# `to_columns` gives plain lists; `to_dataframe` the same as a DataFrame, where pandas is installed. A record with several tables
# lists their names under `tables`.

# %%
evidence.tables

# %%
heads = scores.to_dataframe()
heads.sort_values("prefix_matching", ascending=False).head(3)

# %%
both = heads.merge(ablations.to_dataframe(), on=["layer", "head"])
both[["prefix_matching", "previous_token", "effect"]].corr(method="spearman").round(2)

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
# An induction head finds an earlier copy of the current token, and predicts the token that followed it. This notebook shows
# how to find such heads in a model, and when they formed in a training.
#
# Start Jupyter or VS Code in the top folder of a clone of the repository. VS Code runs this file cell by cell. Jupyter opens it
# with jupytext. The model and the training run come with the repository. All cells together take less than a minute.
#
# To test your own model, replace the path in the next cell.

# %%
import pytest_induction as pi
from pytest_induction.comparison import profile_of

model = pi.load_model("fixtures/models/llama-2l")

# %% [markdown]
# ## Which heads look at the right token?
#
# The prefix-matching score is the share of its attention that a head gives to the token after the earlier copy. It is 1 for a
# perfect head and near 0 for most others. The output below lists the strongest heads. In the map, each row is a layer and each
# column is a head.

# %%
scores = pi.measure_heads(model, seed=0)
scores

# %% [markdown]
# `plot` draws one map for each score. To keep them, call `scores.plot().save("scores.svg")`. The name may also end in `.html`.

# %%
scores.plot()

# %% [markdown]
# ## Is there an induction head?
#
# A score is not yet an answer. An assertion measures until the answer is clear, and returns the evidence. The verdict is SHOWN,
# REFUTED or UNDETERMINED.

# %%
evidence = pi.assert_has_induction_head(model, seed=0)
evidence

# %%
assert evidence.verdict is pi.Verdict.SHOWN
evidence.plot()

# %% [markdown]
# If a claim does not hold, the assertion raises `ExpectationFailed`. The error has the evidence too.

# %%
try:
    pi.assert_no_induction_head(model, seed=0)
except pi.ExpectationFailed as failed:
    refuted = failed.evidence
refuted.verdict, refuted.reason

# %% [markdown]
# ## What does the model lose without a head?
#
# Here each head is switched off (ablated), one at a time. The effect is how much the loss on repeated tokens rises, in nats. The
# larger the effect, the more the model needs the head.

# %%
ablations = pi.measure_ablations(model, seed=0)
ablations

# %% [markdown]
# ## When did the heads form?
#
# This is a recorded training run. The curves show it step by step. Gold marks the steps in which induction formed.

# %%
run = pi.load_run("fixtures/runs/two-layers")
run

# %% [markdown]
# The table has one row for each curve. `midpoint_step` is the step at which half of the change is done. `width` is how long the
# change took, in decades of tokens: 0.1 means that the number of tokens grew by a quarter meanwhile.

# %%
formed = pi.assert_phase_change(run)
formed.to_dataframe("changes")[["series", "verdict", "midpoint_step", "width"]]

# %% [markdown]
# ## Did a new model keep the heads of the old one?
#
# Make a profile of the old model. It has the scores of its induction heads and previous-token heads, and says how well the model
# copies repeated tokens.

# %%
profile = profile_of(model, seed=0)
profile

# %% [markdown]
# Then compare the new model with the profile. Here both are the same model, so every head is kept.

# %%
kept = pi.assert_heads_preserved(profile, model)
kept.to_dataframe("compared")[["measure", "role", "head", "status", "before", "after"]]

# %% [markdown]
# ## How do I get the numbers?
#
# `to_dataframe` gives a pandas DataFrame. `to_columns` gives plain lists and does not need pandas. Some records have several
# tables; `tables` has their names.

# %%
evidence.tables

# %% [markdown]
# The three heads with the highest prefix-matching score:

# %%
heads = scores.to_dataframe()
heads.sort_values("prefix_matching", ascending=False).head(3)

# %% [markdown]
# And a question for pandas: do heads with high scores also matter more? These are rank correlations over all heads.

# %%
both = heads.merge(ablations.to_dataframe(), on=["layer", "head"])
both[["prefix_matching", "previous_token", "effect"]].corr(method="spearman").round(2)

from pytest_induction.causal.recall_paths import MixerRecall as MixerRecall
from pytest_induction.causal.recall_paths import RecallPaths as RecallPaths
from pytest_induction.causal.recall_paths import RestoredRecall as RestoredRecall
from pytest_induction.causal.recall_paths import TapRecall as TapRecall

from pytest_induction.behaviour.matches import LossByMatch as LossByMatch
from pytest_induction.behaviour.outcomes import Behaviour as Behaviour
from pytest_induction.behaviour.outcomes import Masses as Masses
from pytest_induction.behaviour.outcomes import Outcome as Outcome
from pytest_induction.behaviour.outcomes import evaluate_probes as evaluate_probes

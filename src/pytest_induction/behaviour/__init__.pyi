from pytest_induction.behaviour.outcomes import Behaviour as Behaviour
from pytest_induction.behaviour.outcomes import Masses as Masses
from pytest_induction.behaviour.outcomes import Outcome as Outcome
from pytest_induction.behaviour.outcomes import evaluate_probes as evaluate_probes
from pytest_induction.behaviour.recall import RecallCurve as RecallCurve
from pytest_induction.behaviour.recall import RecallPoint as RecallPoint
from pytest_induction.behaviour.rules import RuleCurve as RuleCurve
from pytest_induction.behaviour.rules import RulePoint as RulePoint

from pytest_induction.probes.sequences import Answer as Answer
from pytest_induction.probes.sequences import Probe as Probe
from pytest_induction.probes.sequences import ProbeSequence as ProbeSequence

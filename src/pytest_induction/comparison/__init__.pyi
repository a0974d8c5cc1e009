from pytest_induction.comparison.preserved import profile_of as profile_of
from pytest_induction.comparison.profiles import HeadsProfile as HeadsProfile

"""What a head and a model are held against. No imports, so that who judges what is on record needs no torch."""

MIN_PREFIX_MATCHING = 0.3  # of a head, over varied periods; paper: "a continuum, but a clear subset", so no bar of its own
MIN_ADVANTAGE = 0.5  # nats by which the successor must be likelier than the tokens after it
EXCESS_SHARE = 0.5  # of the bar, that must be left of a head's score without what it has where there is nothing to match

"""One model held against another: preserved heads, and continuity over families."""

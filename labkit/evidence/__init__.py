"""Wing 3: what can be said of cohorts and models, with intervals, and always beside what real scans give."""

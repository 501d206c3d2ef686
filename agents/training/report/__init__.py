"""One page about finished or unfinished runs: ``build`` in ``page.py`` makes it, ``docs/report.md`` reads it."""

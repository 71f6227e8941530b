"""A fleet: many adapters on their way from one base to the next, in one run.

`settings` reads the file, `running` does the work, `deciding` says what to do with each adapter,
`record` makes fleet.json of it; the page is `muscle.report.fleet`'s.
"""

"""``millpond bench``: load on a server, what it takes, and a report of it.

What decides and computes (lengths, loads, figures, comparisons) is pure; `client.py`, `driver.py`,
`places.py` and `frontier.py` talk to servers; ``report/`` writes files.
"""

"""The web page at ``/``: what the browser gets lies in ``web/``, what serves it here. Nothing is built.

The libraries in ``web/vendor/`` come from npm as ``libraries.json`` pins them; ``make page-libraries``
fetches them again. The page talks to the API as any client does: it has no routes of its own.
"""

"""The literature side: records of papers, weekly digests, search, and the page.

It knows no method: the command line hands it their list.
"""

"""The console: a small web page on which a steward sees what there is, what it cost, and who did what.

One command serves it on this machine: `murmura console`. It reads through the public contracts, as the person whose
token it is given, and changes nothing. A browser holds no token: the page is made here, and only HTML leaves.
"""

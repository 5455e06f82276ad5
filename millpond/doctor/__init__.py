"""What a machine and a server lack for Millpond, and how to mend it. It looks, and changes nothing."""

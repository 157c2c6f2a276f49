"""Bad input, by the hundred thousand: what reads strangers' files is given damaged ones. See docs/security.md."""

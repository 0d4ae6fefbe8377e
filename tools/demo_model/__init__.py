"""How the bundled demo model was made: sentences, synthetic speech, training, export. See README.md."""

"""Evidence: reads references and artifacts, changes nothing, writes only reports."""

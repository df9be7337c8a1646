"""The operator's file: read with every mistake named, checked against itself, shown with origins and masked secrets."""

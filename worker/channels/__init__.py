"""The sending channels: the interface (`protocol`), the list (`registry`), and a module for each."""

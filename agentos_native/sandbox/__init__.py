"""What happens between clone and exec, as a plan that C interprets."""

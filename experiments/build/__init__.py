"""From a configuration to objects; nothing after these modules reads one."""

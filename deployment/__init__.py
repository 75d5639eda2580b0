"""What `reasonseg publish` adds for those who run a checkpoint elsewhere: they need it and what pip installs, not this
package, of which these files import nothing."""

use strict;
use warnings;
use LWP::UserAgent;

my $agent = LWP::UserAgent->new;
my $ok = grep { $agent->get("$ENV{API}/$_")->code == 200 } 1 .. 12;
print "$ok ok\n";
$agent->get("$ENV{OTHER}/");
my $refused = $agent->get("$ENV{OTHER}/");
die $refused->status_line unless $refused->code == 429;
print "told ", $refused->header("Retry-After"), "\n";

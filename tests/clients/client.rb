require "net/http"

codes = (0...12).map { |n| Thread.new { Net::HTTP.get_response(URI("#{ENV["API"]}/#{n}")).code } }.map(&:value)
puts "#{codes.count("200")} ok"
Net::HTTP.get_response(URI("#{ENV["OTHER"]}/"))
refused = Net::HTTP.get_response(URI("#{ENV["OTHER"]}/"))
raise refused.code unless refused.code == "429"
puts "told #{refused["Retry-After"]}"

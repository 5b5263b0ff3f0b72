using System;
using System.IO;
using System.Security.Cryptography;
using System.Text;
using System.Text.RegularExpressions;

/// <summary>Runs the example: the body on standard input, the header as argument if there is one.</summary>
public static class Drive
{
    public static int Main(string[] args)
    {
        var input = new MemoryStream();
        Console.OpenStandardInput().CopyTo(input);
        var body = input.ToArray();
        var secret = Environment.GetEnvironmentVariable("DEALIX_WEBHOOK_SECRET");
        try
        {
            DealixSignature.Verify(body, args.Length > 0 ? args[0] : null, secret);
        }
        catch (CryptographicException refused)
        {
            Console.Error.WriteLine("refused: " + refused.Message);
            return 1;
        }
        var id = Regex.Match(Encoding.UTF8.GetString(body), "\"id\":\"([^\"]*)\"").Groups[1].Value;
        Console.WriteLine("accepted " + id);
        return 0;
    }
}
